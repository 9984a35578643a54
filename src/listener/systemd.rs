//! Listening sockets that systemd hands to the process: those of `.socket` units, and those that an
//! earlier process of the service has had stored.
//!
//! 1. A descriptor is taken out of the environment's list once in a process, and belongs to one
//!    listener from there on. The variables stay set: to remove one is not safe while other threads
//!    run, and a program that this one starts has another id, for which the list is not.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::Mutex;

use socket2::SockRef;

use super::RawListener;
use super::inherited::Adopted;
use crate::address::Address;
use crate::sync::lock;
use crate::transport::Engine;

/// The first descriptor that systemd passes.
const FIRST: RawFd = 3;
/// How the names begin under which this crate has its listeners stored.
const STORED: &str = "gracious ";

/// The descriptors that were passed and are not taken yet; `None` before the list was read.
static PASSED: Mutex<Option<Vec<Passed>>> = Mutex::new(None);

/// A descriptor from systemd, with its name.
#[derive(Debug)]
struct Passed {
    fd: OwnedFd,
    name: String,
}

/// Takes the sockets of this name, or all that units have passed.
///
/// # Errors
/// Where none was passed, or not to this process, or what was passed is no such list or no listening
/// stream socket.
pub(super) fn take(name: Option<&str>) -> io::Result<Vec<Adopted>> {
    let is_wanted = |it: &Passed| match name {
        Some(name) => it.name == name,
        None => !it.name.starts_with(STORED),
    };
    let taken = take_if(is_wanted)?;
    if taken.is_empty() {
        let what = name.map_or(String::new(), |name| format!(" of the name `{name}`"));
        let why = match std::env::var("LISTEN_FDNAMES") {
            Ok(names) => format!("LISTEN_FDNAMES is `{names}`"),
            Err(_) => "LISTEN_FDNAMES is not set".to_owned(),
        };
        return Err(invalid(format!(
            "systemd has passed no socket{what} that is not taken already: {why}"
        )));
    }
    let adopt = |Passed { fd, name }: Passed| {
        Adopted::try_from(fd)
            .map_err(|error| io::Error::new(error.kind(), format!("systemd's `{name}`: {error}")))
    };
    taken.into_iter().map(adopt).collect()
}

/// Takes the sockets of this address that were stored. With port 0 there are none: which port was
/// meant is not known.
///
/// # Errors
/// Where the list of what was passed is none.
pub(super) fn take_stored(address: &Address) -> io::Result<Vec<Adopted>> {
    let name = stored_name(address);
    let is_there = |it: &Passed| it.name == name && is_at(&it.fd, address);
    // A process that systemd has passed nothing to has nothing stored either.
    if list()?.is_err() {
        return Ok(Vec::new());
    }
    let taken = take_if(is_there)?;
    taken.into_iter().map(|it| it.fd.try_into()).collect()
}

/// Closes what was stored and nobody has taken, and gives the names: an address that the service
/// listened on before and does not any more.
pub(crate) fn drop_stored() -> Vec<String> {
    let mut passed = lock(&PASSED);
    let Some(list) = &mut *passed else {
        return Vec::new();
    };
    let all = std::mem::take(list).into_iter();
    let (stored, left): (Vec<_>, _) = all.partition(|it| it.name.starts_with(STORED));
    *list = left;
    drop(passed);
    stored.into_iter().map(|it| it.name).collect()
}

/// How many descriptors systemd stores for this service; 0 where it stores none, or is older than 254
/// and does not tell.
pub(crate) fn store_size() -> usize {
    let size = std::env::var("FDSTORE");
    size.ok().and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// The name under which a listener is stored: of 255 printable ASCII characters at most, and no colon.
pub(crate) fn stored_name(address: &Address) -> String {
    let printable = |it: char| match it {
        ':' => '.',
        ' '..='~' => it,
        _ => '_',
    };
    let address = address.to_string();
    STORED
        .chars()
        .chain(address.chars().map(printable))
        .take(255)
        .collect()
}

/// Registers sockets that were stored, as many as there are engines in one group.
pub(super) fn register(
    stored: Vec<Adopted>,
    engines: &[Engine],
) -> io::Result<Vec<Vec<Box<dyn RawListener>>>> {
    let mut groups: Vec<Vec<_>> = Vec::new();
    for (index, adopted) in stored.into_iter().enumerate() {
        let engine = index % engines.len();
        if engine == 0 {
            groups.push(Vec::new());
        }
        let mut listener = adopted.into_raw(&engines[engine])?;
        listener.keep();
        if let Some(group) = groups.last_mut() {
            group.push(listener);
        }
    }
    Ok(groups)
}

/// Whether a socket is bound to this address, and can be reached there.
fn is_at(fd: &OwnedFd, address: &Address) -> bool {
    let Ok(local) = SockRef::from(fd).local_addr() else {
        return false;
    };
    match address {
        Address::Tcp(address) => local.as_socket() == Some(*address),
        Address::Unix(path) => {
            let is_socket = |it: fs::Metadata| it.file_type().is_socket();
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            // The path may have been removed meanwhile, as systemd removes a RuntimeDirectory.
            local.as_pathname() == Some(&path) && fs::symlink_metadata(path).is_ok_and(is_socket)
        }
        Address::Abstract(name) => {
            #[cfg(target_os = "linux")]
            return local.as_abstract_namespace() == Some(name);
            #[cfg(not(target_os = "linux"))]
            {
                let _there_are_none = name;
                false
            }
        }
        _ => false,
    }
}

/// Takes those of the descriptors that were passed.
fn take_if(is_wanted: impl Fn(&Passed) -> bool) -> io::Result<Vec<Passed>> {
    list()??;
    let mut passed = lock(&PASSED);
    let list = passed.get_or_insert_default();
    let (taken, left) = std::mem::take(list).into_iter().partition(is_wanted);
    *list = left;
    Ok(taken)
}

/// Reads the list, once. The inner error says that nothing was passed to this process; the outer one
/// that the list is none.
fn list() -> io::Result<io::Result<()>> {
    let mut passed = lock(&PASSED);
    if passed.is_some() {
        return Ok(Ok(()));
    }
    let variable = std::env::var_os;
    let named = match parse(
        variable("LISTEN_PID"),
        variable("LISTEN_FDS"),
        variable("LISTEN_FDNAMES"),
        std::process::id(),
    )? {
        Ok(named) => named,
        Err(error) => return Ok(Err(error)),
    };
    for (fd, name) in &named {
        if !is_open(*fd) {
            return Err(invalid(format!(
                "descriptor {fd} (`{name}`), which LISTEN_FDS counts, is not open"
            )));
        }
    }
    let own = |(fd, name)| Passed { fd: own(fd), name };
    *passed = Some(named.into_iter().map(own).collect());
    Ok(Ok(()))
}

type Named = Vec<(RawFd, String)>;

/// Reads what systemd says in the environment.
fn parse(
    pid: Option<OsString>,
    fds: Option<OsString>,
    names: Option<OsString>,
    own: u32,
) -> io::Result<io::Result<Named>> {
    let Some(fds) = fds else {
        return Ok(Err(invalid(
            "systemd has passed no socket: LISTEN_FDS is not set".to_owned(),
        )));
    };
    let number = |name: &str, text: &OsString| {
        let parsed = text.to_str().and_then(|it| it.parse::<u32>().ok());
        let found = || invalid(format!("{name} is {text:?}: expected a number"));
        parsed.ok_or_else(found)
    };
    let Some(pid) = pid else {
        return Err(invalid(
            "LISTEN_FDS is set, and LISTEN_PID is not: expected both, or none".to_owned(),
        ));
    };
    let pid = number("LISTEN_PID", &pid)?;
    let count = number("LISTEN_FDS", &fds)?;
    if pid != own {
        return Ok(Err(invalid(format!(
            "systemd has passed sockets to process {pid} (LISTEN_PID), and this is process {own}: \
             expected to be started by systemd itself, or by `exec` of what it started",
        ))));
    }
    let last = i32::try_from(count)
        .ok()
        .and_then(|it| FIRST.checked_add(it));
    let last =
        last.ok_or_else(|| invalid(format!("LISTEN_FDS is {count}: that many there are not")))?;
    let names = names.map(|it| it.to_string_lossy().into_owned());
    let names: Vec<&str> = match names.as_deref() {
        None => Vec::new(),
        Some(names) => names.split(':').collect(),
    };
    if !names.is_empty() && count > 0 && names.len() != count as usize {
        return Err(invalid(format!(
            "LISTEN_FDNAMES has {} names, and LISTEN_FDS is {count}: expected one for each",
            names.len()
        )));
    }
    let mut names = names.into_iter();
    // What systemd itself calls what it has no name for.
    let mut named = |fd| (fd, names.next().unwrap_or("unknown").to_owned());
    Ok(Ok((FIRST..last).map(&mut named).collect()))
}

#[allow(unsafe_code)]
fn is_open(fd: RawFd) -> bool {
    // SAFETY: this asks for a number's flags, and whether it is a descriptor at all.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the descriptor is open, which the caller has looked at, and nobody else's: by LISTEN_FDS
    // and LISTEN_PID it was passed to this process to be taken, and this takes it once (invariant 1).
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // A program that this one starts meanwhile would hold the port.
    let _is_open = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
    fd
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pid: &str, fds: &str, names: Option<&str>) -> Result<Named, String> {
        let parsed = parse(Some(pid.into()), Some(fds.into()), names.map(Into::into), 7);
        parsed.and_then(|it| it).map_err(|error| error.to_string())
    }

    #[test]
    fn the_names_are_those_of_the_descriptors() {
        let named = |names: &[&str]| -> Named {
            let names = names.iter().map(|name| (*name).to_owned());
            (3..).zip(names).collect()
        };
        assert_eq!(
            parsed("7", "2", Some("web:admin")),
            Ok(named(&["web", "admin"]))
        );
        assert_eq!(parsed("7", "2", None), Ok(named(&["unknown", "unknown"])));
        assert_eq!(parsed("7", "0", Some("")), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_list_is_named() {
        let says = |parsed: Result<Named, String>, what: &str| {
            let error = parsed.unwrap_err();
            assert!(error.contains(what), "{error}");
        };
        says(parsed("7", "two", None), "LISTEN_FDS is \"two\"");
        says(parsed("7", "-1", None), "LISTEN_FDS is \"-1\"");
        says(parsed("7", "4294967295", None), "that many there are not");
        says(parsed("I", "1", None), "LISTEN_PID is \"I\"");
        says(
            parsed("8", "1", None),
            "process 8 (LISTEN_PID), and this is process 7",
        );
        says(parsed("7", "2", Some("web")), "LISTEN_FDNAMES has 1 names");
        let none = parse(None, None, None, 7).unwrap().unwrap_err();
        assert!(none.to_string().contains("LISTEN_FDS is not set"));
        let half = parse(None, Some("1".into()), None, 7).unwrap_err();
        assert!(half.to_string().contains("LISTEN_PID is not"));
    }

    #[test]
    fn a_stored_listener_has_a_name_that_systemd_takes() {
        let name = |address: &str| stored_name(&address.parse().unwrap());
        assert_eq!(name("127.0.0.1:80"), "gracious 127.0.0.1.80");
        assert_eq!(name("[::1]:80"), "gracious [..1].80");
        assert_eq!(name("unix:/run/x.sock"), "gracious unix./run/x.sock");
        let long = name(&format!("unix:/{}", "long/".repeat(100)));
        assert_eq!(long.len(), 255);
        assert!(
            long.bytes()
                .all(|it| (b' '..=b'~').contains(&it) && it != b':')
        );
    }
}
