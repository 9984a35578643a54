//! What all servers speak, line by line.
//!
//! | a client says | and is answered |
//! |---|---|
//! | `say TEXT` | TEXT, and ` close` behind it once the server is about to stop |
//! | `bye TEXT` | TEXT, and the end |
//! | `wait MILLISECONDS TEXT` | TEXT, so much later |
//! | `give BYTES` | so many bytes of a [pattern](pattern), and the end |
//! | `take`, and bytes to its end | how many there were, and the end |

use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use futures_lite::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Serves one connection. `leaving` says whether the server is about to stop.
pub async fn talk<R, W>(mut reader: R, mut writer: W, leaving: impl Fn() -> bool) -> io::Result<()>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let (word, rest) = line.trim_end().split_once(' ').unwrap_or(("take", ""));
        match word {
            "say" => {
                let close = if leaving() { " close" } else { "" };
                let answer = format!("{rest}{close}\n");
                writer.write_all(answer.as_bytes()).await?;
            }
            "bye" => return writer.write_all(format!("{rest}\n").as_bytes()).await,
            "wait" => {
                let (wait, text) = rest.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
                async_io::Timer::after(Duration::from_millis(number(wait)?)).await;
                writer.write_all(format!("{text}\n").as_bytes()).await?;
            }
            "give" => return give(&mut writer, number(rest)? as usize).await,
            _ => {
                let mut taken = 0;
                let mut buffer = vec![0; 16 << 10];
                loop {
                    match reader.read(&mut buffer).await? {
                        0 => return writer.write_all(format!("{taken}\n").as_bytes()).await,
                        more => taken += more,
                    }
                }
            }
        }
    }
}

async fn give<W: AsyncWrite + Unpin>(writer: &mut W, bytes: usize) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let piece = pattern(at, bytes - at);
        writer.write_all(piece).await?;
        at += piece.len();
    }
    Ok(())
}

/// At most `length` bytes of a long series, from `at` on; each differs from its neighbours.
pub fn pattern(at: usize, length: usize) -> &'static [u8] {
    static SERIES: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..64 << 10).map(|at| (at % PERIOD) as u8).collect());
    let rest = &SERIES[at % PERIOD..];
    &rest[..length.min(rest.len())]
}

/// A prime, so that it falls together with no size of a buffer.
const PERIOD: usize = 251;

fn number(text: &str) -> io::Result<u64> {
    let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, format!("no number: {text}"));
    text.parse().map_err(wrong)
}
