//! The socket by which operators and successors ask for a handover.
//!
//! An operator sends a line, `upgrade`, and has the socket open until it is told how that went. A
//! successor that was started by somebody else takes the sockets over there. The path is in the file
//! system, of mode 0600, and whoever connects has to be of our user, or root.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_io::Async;
use futures_lite::future;

use super::give;
use super::wire::{self, NO, TAKE, VERSION};
use crate::lifecycle::Phase;
use crate::listener::handover::TriggerSocket;
use crate::listener::set::ListenerSet;
use crate::log;
use crate::shared::Shared;

/// How long whoever connects may take to say what it wants.
const WORD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long no connection is accepted after an error.
const PAUSE: Duration = Duration::from_millis(100);

/// What a builder was asked for.
pub(crate) struct Trigger {
    pub(crate) path: PathBuf,
    /// Makes what starts a successor.
    pub(crate) command: Arc<dyn Fn() -> Command + Send + Sync>,
}

impl fmt::Debug for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trigger").field(&self.path).finish()
    }
}

impl Trigger {
    pub(crate) async fn bind(&self) -> io::Result<TriggerSocket> {
        let path = self.path.clone();
        blocking::unblock(move || TriggerSocket::bind(path)).await
    }

    /// Answers at the server's socket until the server is asked to stop; where there is a predecessor,
    /// from when that has handed over. If it has not handed the socket over, it is bound then.
    pub(crate) async fn serve(self, server: Arc<Shared>, has_predecessor: bool) {
        let stopped = server.latch.reached(Phase::Draining);
        let serving = async {
            if has_predecessor {
                server.succeeded().await;
            }
            let answered = async {
                if server.trigger().is_none() {
                    server.set_trigger(Some(self.bind().await?));
                }
                self.answer_all(&server).await
            };
            if let Err(error) = answered.await {
                let path = self.path.display();
                log::error!(target: "gracious", "no handover can be asked for at {path}: {error}");
            }
        };
        future::or(stopped, serving).await;
        server.set_trigger(None);
    }

    async fn answer_all(&self, server: &Arc<Shared>) -> io::Result<()> {
        let Some(listener) = server.with_trigger(|it| it.listener().clone()) else {
            return Ok(());
        };
        let listener = Async::new_nonblocking(listener)?;
        loop {
            listener.readable().await?;
            // Once a successor has it, whoever is queued is not ours to refuse.
            let Some(accepted) = server.with_trigger(|it| accept(server, it.listener())) else {
                return Ok(());
            };
            match accepted {
                Ok(stream) => {
                    let (server, command) = (server.clone(), self.command.clone());
                    blocking::unblock(move || {
                        if let Err(error) = answer(&server, &stream, &*command) {
                            log::warn!(target: "gracious", "asked for a handover: {error}");
                        }
                    })
                    .detach();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!(target: "gracious", "cannot be asked for a handover: {error}");
                    server.clock.sleep(PAUSE).await;
                }
            }
        }
    }
}

/// The server has become a successor, or is none, and its trigger is its own.
pub(super) fn begin(server: &Arc<Shared>) {
    server.succeed();
}

/// Accepts one connection, with a descriptor that is held back for it if there is no other.
fn accept(server: &Shared, listener: &UnixListener) -> io::Result<UnixStream> {
    let accepted = listener.accept();
    let is_short = |error: &io::Error| error.raw_os_error() == Some(libc::EMFILE);
    let accepted = match accepted {
        Err(error) if is_short(&error) => {
            let sets: Vec<_> = server.listener_sets.iter().collect();
            ListenerSet::keep_still(&sets, || {
                server.give_descriptors_up();
                let accepted = listener.accept();
                server.hold_descriptors_back();
                accepted
            })
        }
        accepted => accepted,
    };
    let (stream, _) = accepted?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Does what one connection asks for.
fn answer(
    server: &Arc<Shared>,
    stream: &UnixStream,
    command: &dyn Fn() -> Command,
) -> io::Result<()> {
    stream.set_read_timeout(Some(WORD_TIMEOUT))?;
    stream.set_write_timeout(Some(WORD_TIMEOUT))?;
    let user = rustix::net::sockopt::socket_peercred(stream)?.uid;
    if !user.is_root() && user != rustix::process::geteuid() {
        let message = format!("refused: user {} is neither ours nor root", user.as_raw());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mut first = [0];
    if rustix::net::recv(stream, &mut first, rustix::net::RecvFlags::PEEK)?.0 == 0 {
        return Ok(());
    }
    if first[0] == TAKE {
        let take = wire::receive(stream)?;
        let version = u32::from_ne_bytes(wire::take(&mut &take.body[..])?);
        if version != VERSION {
            let why = format!("a successor of version {version}: expected {VERSION}");
            let _gone = wire::send(stream, NO, why.as_bytes(), None, true);
            log::warn!(target: "gracious", "not handed over: {why}");
            return Ok(());
        }
        // What keeps it from coming about is in the log already.
        let _logged = give::to_process(server, stream);
        return Ok(());
    }
    let mut line = String::new();
    BufReader::new(stream.take(64)).read_line(&mut line)?;
    let mut stream = stream;
    match line.trim_end() {
        "upgrade" => match give::to_program(server, command()) {
            Ok(id) => writeln!(stream, "handed over to process {id}"),
            Err(error) => writeln!(stream, "not handed over: {error}"),
        },
        _ => writeln!(stream, "expected a line: upgrade"),
    }
}
