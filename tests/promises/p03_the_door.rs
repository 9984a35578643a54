//! Promise 3. **The door is shut first.** A connect after the listeners closed is refused at once,
//! while the drain goes on; the port can be bound again at once; nobody is told to leave while the
//! door is open.

use std::io::ErrorKind;
use std::net::TcpStream;

use futures_lite::AsyncBufReadExt;
use gracious::{Connection, Server};

use crate::support::TestRuntime;

crate::on_every_runtime!(
    a_connect_during_the_drain_is_refused,
    the_port_can_be_bound_while_the_old_server_drains
);

async fn a_connect_during_the_drain_is_refused<R: TestRuntime>(runtime: R) {
    let server = Server::with_runtime(runtime)
        .listen("127.0.0.1:0")
        .bind()
        .await
        .unwrap();
    let address = server.local_addrs()[0].as_tcp().unwrap();
    let (told, is_told) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let _busy = conn.busy();
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        conn.fill_buf().await.map(drop)
    });
    let client = TcpStream::connect(address).unwrap();
    running.handle().shutdown();
    // The connection is told after the door was shut, and still there.
    is_told.recv().await.unwrap();
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(running.handle().active(), 1);
    drop(client);
    assert_eq!(running.await.unwrap().completed, 1);
}

async fn the_port_can_be_bound_while_the_old_server_drains<R: TestRuntime>(runtime: R) {
    let server = Server::with_runtime(runtime.clone())
        .listen("127.0.0.1:0")
        .bind()
        .await
        .unwrap();
    let address = server.local_addrs()[0].clone();
    let (told, is_told) = async_channel::bounded(1);
    let running = server.spawn(async move |mut conn: Connection| {
        let _busy = conn.busy();
        conn.shutdown_requested().await;
        told.send(()).await.unwrap();
        conn.fill_buf().await.map(drop)
    });
    let client = TcpStream::connect(address.as_tcp().unwrap()).unwrap();
    running.handle().shutdown();
    is_told.recv().await.unwrap();
    let successor = Server::with_runtime(runtime)
        .listen(address)
        .bind()
        .await
        .unwrap();
    drop((successor, client));
    running.await.unwrap();
}
