//! The handlers and scripts that the scenarios share.

use std::io;

use futures_lite::AsyncWriteExt;
use gracious::Connection;
use gracious::testing::Peer;

/// Gives every line back.
pub(crate) async fn echo(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await.transpose()? {
        writer.write_all(format!("{line}\n").as_bytes()).await?;
    }
    Ok(())
}

/// Says three lines, and wants each back, or the end.
pub(crate) async fn talk(peer: &mut Peer) -> io::Result<()> {
    for word in ["hello", "again", "bye"] {
        peer.write_all(format!("{word}\n").as_bytes()).await?;
        match peer.read_line().await? {
            Some(line) => assert_eq!(line, word),
            None => return Ok(()),
        }
    }
    Ok(())
}
