//! The server of `http`, over TLS: clients agree on HTTP/2 or HTTP/1.1 in the handshake.
//!
//! ```sh
//! openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=localhost \
//!     -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE
//! cargo run --example https --features http,tls   # or: -- CERTIFICATE KEY ADDRESS
//! curl --cacert cert.pem https://localhost:8443/  # and /slow, and Ctrl-C meanwhile
//! openssl s_client -connect localhost:8443 -CAfile cert.pem
//! ```
//!
//! Ctrl-C: idle clients see the end of TLS and then that of the connection, never a truncation; `/slow`
//! is answered. The files are read again for `/reload`, and clients that are connected notice nothing.

mod usage;

use std::process::ExitCode;
use std::{io, time::Duration};

use gracious::{Report, Server, Tls, web};

pub(crate) async fn answer(request: web::Request, tls: Tls) -> web::Response<String> {
    web::Response::new(match request.uri().path() {
        "/slow" => {
            async_std::task::sleep(Duration::from_secs(2)).await;
            "better late than never\n".into()
        }
        "/reload" => match tls.reload() {
            Ok(()) => "new clients get the new certificate\n".into(),
            Err(error) => format!("the old certificate stays: {error}\n"),
        },
        _ => format!("hello over {:?}\n", request.version()),
    })
}

async fn serve(certificate: &str, key: &str, address: &str) -> io::Result<Report> {
    let tls = Tls::from_pem_files(certificate, key)?.alpn(web::ALPN);
    let server = Server::builder()
        .listen_tls(address, &tls)
        .stop_on_signals();
    let server = server.bind().await?;
    println!("{server}");
    let handler = web::serve(move |request| answer(request, tls.clone()));
    server.serve(handler).await
}

#[async_std::main]
async fn main() -> ExitCode {
    env_logger::init();
    let usage = "https [CERTIFICATE] [KEY] [ADDRESS]";
    let words = usage::words(usage, ["cert.pem", "key.pem", "127.0.0.1:8443"]);
    let served = serve(&words[0], &words[1], &words[2]).await;
    match &served {
        Ok(report) => println!("{report}"),
        Err(error) => eprintln!("https: {error}"),
    }
    served.map_or(ExitCode::from(2), |report| report.exit_code())
}
