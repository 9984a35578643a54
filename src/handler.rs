//! What a handler may be, and what it may return.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use crate::connection::Connection;

/// The user's code for one connection.
///
/// An `async fn(Connection)`, a closure `|conn| async move { … }` and a capturing
/// `async move |conn| { … }` are handlers as they are; they return `()` or `io::Result<()>`. A type
/// of one's own implements this trait and goes to
/// [`Server::serve_with`](crate::Server::serve_with). For every connection the handler is cloned,
/// so what it shares belongs in an `Arc`.
///
/// ```
/// use std::io;
///
/// use futures_lite::AsyncWriteExt;
/// use gracious::{Connection, Handler};
///
/// #[derive(Clone)]
/// struct Greeter(&'static str);
///
/// impl Handler for Greeter {
///     async fn run(self, mut conn: Connection) -> io::Result<()> {
///         conn.write_all(self.0.as_bytes()).await
///     }
/// }
/// ```
///
/// A handler that cannot be cloned, or whose future is not `Send`, does not compile:
///
/// ```compile_fail,E0277
/// # async fn example(server: gracious::Server<gracious::AsyncStd>) -> std::io::Result<()> {
/// struct Unique;
/// let unique = Unique;
/// server.serve(move |_conn| { let _unique = &unique; async {} }).await?; // `Unique` is not `Clone`
/// # Ok(()) }
/// ```
///
/// ```compile_fail
/// # async fn example(server: gracious::Server<gracious::AsyncStd>) -> std::io::Result<()> {
/// use std::rc::Rc;
/// server
///     .serve(|mut conn| async move {
///         let line = Rc::new(String::from("hello")); // is not `Send`, and held over an await
///         futures_lite::AsyncWriteExt::write_all(&mut conn, line.as_bytes()).await
///     })
///     .await?;
/// # Ok(()) }
/// ```
///
/// ```compile_fail,E0277
/// # async fn example(server: gracious::Server<gracious::AsyncStd>) -> std::io::Result<()> {
/// server.serve(|_conn| async { "a handler returns nothing or io::Result<()>" }).await?;
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a connection handler",
    label = "expected an `async fn(Connection) -> io::Result<()>` or a closure like it",
    note = "a handler is cloned for every connection and runs on any thread: it and its future must be `Send + 'static`, and it `Clone`; share state through an `Arc`"
)]
pub trait Handler: Clone + Send + 'static {
    /// Serves one connection, to its end.
    fn run(self, connection: Connection) -> impl Future<Output = io::Result<()>> + Send + 'static;
}

impl<F, Fut> Handler for F
where
    F: FnOnce(Connection) -> Fut + Clone + Send + 'static,
    Fut: Future<Output: Outcome> + Send + 'static,
{
    fn run(self, connection: Connection) -> impl Future<Output = io::Result<()>> + Send + 'static {
        Returning {
            future: self(connection),
        }
    }
}

/// What a handler may return: `()` or `io::Result<()>`.
#[diagnostic::on_unimplemented(
    message = "a connection handler cannot return `{Self}`",
    label = "expected a handler that returns `()` or `io::Result<()>`",
    note = "every error that can be boxed will do with `gracious::fallible(handler)`"
)]
pub trait Outcome: sealed::Sealed + Send {
    #[doc(hidden)]
    fn into_result(self) -> io::Result<()>;
}

impl Outcome for () {
    fn into_result(self) -> io::Result<()> {
        Ok(())
    }
}

impl Outcome for io::Result<()> {
    fn into_result(self) -> io::Result<()> {
        self
    }
}

/// Makes a handler of one whose errors are any that can be boxed: `Box<dyn Error>`, `anyhow`'s, one's
/// own. The server counts and logs them as it does an `io::Error`.
///
/// ```
/// # fn main() -> std::io::Result<()> { async_std::task::block_on(async {
/// use std::error::Error;
///
/// use futures_lite::AsyncBufReadExt;
/// use gracious::{Connection, Server, fallible};
///
/// async fn add(mut conn: Connection) -> Result<(), Box<dyn Error + Send + Sync>> {
///     let mut line = String::new();
///     conn.read_line(&mut line).await?;
///     let _number: u64 = line.trim().parse()?;
///     Ok(())
/// }
///
/// let server = Server::bind("127.0.0.1:0").await?;
/// # server.handle().shutdown();
/// server.serve(fallible(add)).await?;
/// # Ok(()) }) }
/// ```
pub fn fallible<F, Fut, E>(
    handler: F,
) -> impl FnOnce(Connection) -> Fallible<Fut> + Clone + Send + 'static
where
    F: FnOnce(Connection) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    move |connection| Fallible {
        future: handler(connection),
    }
}

pin_project! {
    /// The future of a handler that [`fallible`] made.
    #[must_use = "futures do nothing unless polled"]
    pub struct Fallible<Fut> {
        #[pin]
        future: Fut,
    }
}

impl<Fut, E> Future for Fallible<Fut>
where
    Fut: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(self.project().future.poll(cx));
        // An `io::Error` stays what it is: the log tells a peer's reset by its kind.
        let into_io = |error: E| match error.into().downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        };
        Poll::Ready(result.map_err(into_io))
    }
}

impl<Fut> fmt::Debug for Fallible<Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallible").finish_non_exhaustive()
    }
}

/// Keeps `Outcome` to the two types that it has, so that a third can be added later.
mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl Sealed for std::io::Result<()> {}
}

pin_project! {
    /// A handler's future, with its output made an `io::Result`.
    // An `async` block in its place would have room for the handler's future twice: as what it has
    // captured and as what it awaits.
    pub(crate) struct Returning<Fut> {
        #[pin]
        pub(crate) future: Fut,
    }
}

impl<Fut: Future<Output: Outcome>> Future for Returning<Fut> {
    type Output = io::Result<()>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(ready!(self.project().future.poll(cx)).into_result())
    }
}
