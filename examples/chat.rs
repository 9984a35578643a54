//! A chat, as async-std's book teaches one: first a name, then messages, `alice, bob: hello`. At a
//! stop everybody gets what was said to them before, and hears that the server goes.
//!
//! ```sh
//! cargo run --example chat                    # 127.0.0.1:8888; or -- ADDRESS
//! nc 127.0.0.1 8888                           # several times
//! ```

mod usage;

use std::{collections::HashMap, io, sync::Arc, sync::Mutex};

use async_std::channel::{Sender, bounded};
use futures_lite::{AsyncWriteExt, future};
use gracious::{Connection, EndedBy, IdleWhen, Lines, Report, Server, WriteHalf};

pub(crate) type People = Arc<Mutex<HashMap<String, Sender<String>>>>;

pub(crate) async fn chat(conn: Connection, people: People) -> io::Result<()> {
    // To hear is not to answer: whatever was said, a drain finds this connection idle.
    conn.idle_when(IdleWhen::Unguarded);
    let (reader, mut writer) = conn.split();
    converse(reader.lines(), &mut writer, &people).await?;
    if writer.ended_by() == Some(EndedBy::Drain) {
        writer.write_all(b"the server goes\n").await?;
    }
    Ok(())
}

async fn converse(mut lines: Lines, writer: &mut WriteHalf, people: &People) -> io::Result<()> {
    let Some(name) = lines.next().await.transpose()? else {
        return Ok(());
    };
    let (say, hear) = bounded(100); // who reads so slowly that more wait misses some
    let is_taken = {
        let mut people = people.lock().unwrap();
        people.retain(|_name, say| !say.is_closed());
        people.contains_key(&name) || people.insert(name.clone(), say).is_some()
    };
    if is_taken {
        return writer.write_all(b"that name is taken\n").await;
    }
    let speak = async {
        while let Some(line) = lines.next().await.transpose()? {
            let (names, text) = line.split_once(':').unwrap_or_default();
            let people = people.lock().unwrap();
            for say in names.split(',').filter_map(|to| people.get(to.trim())) {
                let _missed = say.try_send(format!("{name}:{text}\n"));
            }
        }
        hear.close(); // and what is in it already is heard
        Ok(())
    };
    let listen = async {
        while let Ok(text) = hear.recv().await {
            writer.write_all(text.as_bytes()).await?;
        }
        Ok(())
    };
    future::try_zip(speak, listen).await.map(drop)
}

#[async_std::main]
async fn main() -> io::Result<Report> {
    let address = &*usage::words("chat [ADDRESS]", ["127.0.0.1:8888"])[0];
    let server = Server::builder().listen(address).stop_on_signals();
    let server = server.bind().await?;
    println!("{server}");
    let people = People::default();
    server.serve(|conn| chat(conn, people)).await
}
