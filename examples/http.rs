//! An HTTP server that loses no request when it stops: HTTP/1.1 and HTTP/2 on one port.
//!
//! ```sh
//! cargo run --example http --features http     # 127.0.0.1:8080, or an address given as argument
//! curl http://127.0.0.1:8080/                  # HTTP/1.1
//! curl --http2-prior-knowledge http://127.0.0.1:8080/
//! curl http://127.0.0.1:8080/slow              # and press Ctrl-C meanwhile
//! ```
//!
//! Ctrl-C: for a second the server goes on as ever, but its answers say that they are the last of their
//! connections, so that clients and balancers go elsewhere by themselves; then idle connections end,
//! and `/slow` is answered.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use gracious::{Report, Server, web};

async fn answer(request: web::Request) -> web::Response<String> {
    match request.uri().path() {
        "/" => web::Response::new("hello\n".into()),
        "/slow" => {
            async_std::task::sleep(Duration::from_secs(2)).await;
            web::Response::new("better late than never\n".into())
        }
        path => {
            let mut response = web::Response::new(format!("nothing at {path}\n"));
            *response.status_mut() = web::StatusCode::NOT_FOUND;
            response
        }
    }
}

async fn serve(address: &str) -> io::Result<Report> {
    let server = Server::builder().listen(address).stop_on_signals();
    let server = server.lame_duck(Duration::from_secs(1)).bind().await?;
    println!("{server}");
    server.serve(web::serve(answer)).await
}

fn main() -> ExitCode {
    env_logger::init();
    let address = match &std::env::args().skip(1).collect::<Vec<_>>()[..] {
        [] => "127.0.0.1:8080".to_owned(),
        [address] if !address.starts_with('-') => address.clone(),
        _ => {
            eprintln!("usage: http [ADDRESS]");
            return ExitCode::from(2);
        }
    };
    match async_std::task::block_on(serve(&address)) {
        Ok(report) => {
            println!("{report}");
            report.exit_code()
        }
        Err(error) => {
            eprintln!("http: {error}");
            ExitCode::FAILURE
        }
    }
}
