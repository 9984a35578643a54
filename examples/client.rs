//! The other end of `quit`: a client that loses nothing.
//!
//! It sends what comes on standard input and prints what the server answers. At the end of its
//! input it sends its own end, and reads the answers to theirs before it closes; when the server
//! hangs up first, it ends at once.
//!
//! ```sh
//! cargo run --example quit &
//! cargo run --example client                  # 127.0.0.1:8888; type, and end with Ctrl-D
//! printf 'hello\nquit\n' | cargo run --example client -- localhost:8888
//! ```

mod usage;

use std::io;
use std::net::Shutdown;
use std::process::ExitCode;

use async_std::io::{stdin, stdout};
use async_std::net::TcpStream;
use futures_lite::{future, io::copy};

async fn converse(address: &str) -> io::Result<()> {
    let server = TcpStream::connect(address).await?;
    let send = async {
        // A server that takes no more has an end to be read, and that tells.
        if copy(stdin(), &server).await.is_ok() {
            // To close here would throw away the answers that are still on their way.
            server.shutdown(Shutdown::Write).ok();
        }
        future::pending().await
    };
    let receive = async { copy(&server, stdout()).await.map(drop) };
    future::or(receive, send).await
}

#[async_std::main]
async fn main() -> ExitCode {
    let address = &*usage::words("client [ADDRESS]", ["127.0.0.1:8888"])[0];
    match converse(address).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("client: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}
