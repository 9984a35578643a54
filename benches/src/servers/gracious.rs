//! gracious, with its engines and runtimes.

use std::io;
use std::time::Duration;

use gracious::{AsyncStd, Builder, Connection, Runtime, Server, Smol};

use super::on_stop;

/// What [`Builder::spin`] is documented with.
pub(super) const SPIN: Duration = Duration::from_micros(50);

pub(super) fn on_async_std<Fut>(
    configure: impl FnOnce(Builder<AsyncStd>) -> Builder<AsyncStd>,
    handler: fn(Connection) -> Fut,
) -> io::Result<()>
where
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    async_std::task::block_on(serve(configure(Server::builder()), handler))
}

pub(super) fn on_smol<Fut>(handler: fn(Connection) -> Fut) -> io::Result<()>
where
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    smol::block_on(serve(Server::with_runtime(Smol), handler))
}

async fn serve<R: Runtime, Fut>(
    builder: Builder<R>,
    handler: fn(Connection) -> Fut,
) -> io::Result<()>
where
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    let server = builder.listen("127.0.0.1:0").bind().await?;
    println!("{}", server.local_addrs()[0]);
    let handle = server.handle();
    on_stop(move || handle.shutdown());
    server.serve(handler).await?;
    Ok(())
}
