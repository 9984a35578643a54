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

mod usage;

use std::{io, time::Duration};

use gracious::{Report, Server, web};

pub(crate) async fn answer(request: web::Request) -> web::Response<String> {
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

#[async_std::main]
async fn main() -> io::Result<Report> {
    let address = &*usage::words("http [ADDRESS]", ["127.0.0.1:8080"])[0];
    let server = Server::builder().listen(address).stop_on_signals();
    let server = server.lame_duck(Duration::from_secs(1)).bind().await?;
    println!("{server}");
    server.serve(web::serve(answer)).await
}
