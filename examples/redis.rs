//! A small Redis, for `redis-cli` and `redis-benchmark -t ping,set,get -P 16`: PING ECHO GET SET DEL
//! INFO QUIT, and SHUTDOWN, which drains. Pipelined commands are answered in one write.

use std::{collections::HashMap, io, sync::Arc, sync::Mutex};

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use gracious::{Connection, Report, Server};

mod usage;

pub(crate) type Store = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

pub(crate) async fn redis(mut conn: Connection, store: Store) -> io::Result<()> {
    let number = |text: &str| text.trim().parse::<u16>().map_err(io::Error::other);
    let ok = |_old: Option<_>| b"+OK\r\n".to_vec();
    let clients = |count| format!("connected_clients:{count}\r\n");
    let bulk = |text: &[u8]| [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat();
    let (mut line, mut replies, store) = (String::new(), Vec::new(), || store.lock().unwrap());
    while conn.read_line(&mut line).await? > 0 {
        let mut words: Vec<Vec<u8>> = line.split_whitespace().map(Vec::from).collect();
        if let Some(count) = line.strip_prefix('*') {
            words.clear();
            for _ in 0..number(count)? {
                let mut length = String::new();
                conn.read_line(&mut length).await?;
                words.push(vec![0; number(length.trim_start_matches('$'))?.into()]);
                conn.read_exact(words.last_mut().unwrap()).await?;
                conn.read_exact(&mut [0; 2]).await?;
            }
        }
        line.clear();
        let name = words[..words.len().min(1)].concat().to_ascii_uppercase();
        match &*name {
            b"QUIT" => conn.control().request_shutdown(), // ends it when this is answered
            b"SHUTDOWN" => conn.handle().shutdown(),
            _ => {}
        }
        replies.extend(match (&*name, words.get(1..).unwrap_or_default()) {
            (b"PING", []) => b"+PONG\r\n".into(),
            (b"PING" | b"ECHO", [text]) => bulk(text),
            (b"GET", [key]) => store().get(key).map_or(b"$-1\r\n".into(), |it| bulk(it)),
            (b"SET", [key, value]) => ok(store().insert(key.clone(), value.clone())),
            (b"DEL", keys) => {
                let deleted = keys.iter().filter_map(|key| store().remove(key));
                format!(":{}\r\n", deleted.count()).into()
            }
            (b"INFO", _) => bulk(clients(conn.handle().active()).as_bytes()),
            (b"QUIT" | b"SHUTDOWN", _) => ok(None),
            _ => b"-ERR unknown command\r\n".into(),
        });
        // Else the next command is here, and its reply goes with this one.
        if conn.buffer().is_empty() {
            conn.write_all(&replies).await?;
            replies.clear();
        }
    }
    Ok(())
}

#[async_std::main]
async fn main() -> io::Result<Report> {
    let address = &*usage::words("redis [ADDRESS]", ["127.0.0.1:6379"])[0];
    let server = Server::builder().listen(address).stop_on_signals();
    let server = server.bind().await?;
    println!("{server}");
    let store = Store::default();
    server.serve(|conn| redis(conn, store)).await
}
