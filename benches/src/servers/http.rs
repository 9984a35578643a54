//! hyper, on tokio and on gracious, each with its way to stop after a lame duck's time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use gracious::{Builder, web};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};

use super::{Family, Server, on_stop};

/// How long a server goes on as ever after it was asked to stop.
pub const LAME_DUCK: Duration = Duration::from_secs(1);

/// Where a server listens, if another address than one of its own: the successor of another.
pub const ADDRESS: &str = "BENCH_ADDRESS";

/// The names of the servers, each beside the one on tokio that it is compared with.
pub const PAIRS: [(&str, &str); 2] = [
    ("http gracious workers(1)", "http tokio current_thread"),
    ("http gracious async-std", "http tokio"),
];

pub const SERVERS: &[Server] = &[
    Server::new("http tokio", Family::Graceful, || {
        on_tokio(&runtime::Builder::new_multi_thread().enable_all().build()?)
    }),
    Server::new("http tokio current_thread", Family::Graceful, || {
        on_tokio(
            &runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        )
    }),
    Server::new("http gracious async-std", Family::Default, || {
        on_gracious(|it| it)
    }),
    Server::new("http gracious workers(1)", Family::Workers, || {
        on_gracious(|it| it.workers(1))
    }),
];

fn address() -> String {
    std::env::var(ADDRESS).unwrap_or_else(|_| "127.0.0.1:0".to_owned())
}

async fn hello<E>(_request: Request<Incoming>) -> Result<Response<Full<Bytes>>, E> {
    Ok(Response::new(Full::new(Bytes::from_static(
        b"hello, world\n",
    ))))
}

fn on_gracious(
    configure: impl FnOnce(Builder<gracious::AsyncStd>) -> Builder<gracious::AsyncStd>,
) -> io::Result<()> {
    async_std::task::block_on(async {
        let builder = configure(gracious::Server::builder()).listen(&*address());
        let server = builder.reuse_port(true).lame_duck(LAME_DUCK);
        let server = server.bind().await?;
        println!("{}", server.local_addrs()[0]);
        let handle = server.handle();
        on_stop(move || handle.shutdown());
        server.serve(web::serve(hello::<Infallible>)).await?;
        Ok(())
    })
}

fn on_tokio(runtime: &Runtime) -> io::Result<()> {
    let (stop, mut stopped) = tokio::sync::watch::channel(());
    on_stop(move || drop(stop));
    runtime.block_on(async {
        let address: SocketAddr = address().parse().map_err(io::Error::other)?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        let listener = TcpListener::from_std(socket.into())?;
        println!("{}", listener.local_addr()?);
        tokio::spawn(async move {
            let connections = GracefulShutdown::new();
            let over = async move {
                // Its end is the stop.
                let _stop = stopped.changed().await;
                tokio::time::sleep(LAME_DUCK).await;
            };
            let mut over = std::pin::pin!(over);
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted?.0,
                    () = &mut over => break,
                };
                let connection = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(hello::<Infallible>));
                let connection = connections.watch(connection);
                tokio::spawn(connection);
            }
            drop(listener);
            connections.shutdown().await;
            io::Result::Ok(())
        })
        .await?
    })
}
