//! The handshakes under way at a listener: of peers whose SYN was answered and whose last ACK has
//! not come yet. Such a peer believes to be connected, and would be reset if the listener were
//! closed.
//!
//! The kernel tells of them without a privilege: by netlink (`sock_diag`), or in `/proc/net`. It
//! knows nothing of handshakes by SYN cookie.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// A handshake, by the addresses of its two ends and the kernel's number of it (the cookie; 0 where
/// `/proc` was asked). A later handshake may be between the same addresses; it has another number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Handshake {
    local: SocketAddr,
    peer: SocketAddr,
    cookie: u64,
}

/// The handshakes under way at listeners with these addresses.
///
/// # Errors
/// Where neither netlink nor `/proc` may be asked.
pub(crate) fn under_way(listeners: &[SocketAddr]) -> io::Result<HashSet<Handshake>> {
    let mut found = HashSet::new();
    for is_ipv6 in [false, true] {
        if !listeners.iter().any(|it| it.is_ipv6() == is_ipv6) {
            continue;
        }
        // The handshakes of a dual-stack listener are listed under its own family, IPv6, those of
        // IPv4 peers included.
        let listed = by_netlink(is_ipv6).or_else(|_| by_proc(is_ipv6))?;
        found.extend(
            listed
                .into_iter()
                .filter(|it| listeners.iter().any(|at| is_at(it, at))),
        );
    }
    Ok(found)
}

/// Whether a handshake is under way at the listener with this address.
fn is_at(handshake: &Handshake, listener: &SocketAddr) -> bool {
    let same_ip = listener.ip().is_unspecified()
        || listener.ip().to_canonical() == handshake.local.ip().to_canonical();
    handshake.local.port() == listener.port() && same_ip
}

// The numbers of linux/sock_diag.h, linux/inet_diag.h and net/tcp_states.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP_SYN_RECV: u32 = 3;
const HEADER: usize = 16;
/// The length of a request, an `inet_diag_req_v2` behind the header: family, protocol, extensions,
/// padding, states, `inet_diag_sockid`.
const REQUEST: usize = HEADER + 8 + 48;
/// How much of an answer, an `inet_diag_msg`, comes before its `inet_diag_sockid`: family, state,
/// timer, retransmissions.
const BEFORE_ID: usize = 4;

/// The handshakes of one family at all ports, by netlink: one dump.
fn by_netlink(is_ipv6: bool) -> io::Result<Vec<Handshake>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let family = if is_ipv6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    let mut request = [0_u8; REQUEST];
    request[0..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request[HEADER] = family as u8;
    request[HEADER + 1] = libc::IPPROTO_TCP as u8;
    request[HEADER + 4..HEADER + 8].copy_from_slice(&(1_u32 << TCP_SYN_RECV).to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;

    let mut found = Vec::new();
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 32 * 1024];
    loop {
        // This never waits: the kernel makes each part of a dump when the one before it is read.
        let ((part, _), _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if parse_dump(part, is_ipv6, &mut found)? {
            return Ok(found);
        }
    }
}

/// Reads a part of a dump and adds its handshakes to `found`; `true` at the end of the dump.
fn parse_dump(mut part: &[u8], is_ipv6: bool, found: &mut Vec<Handshake>) -> io::Result<bool> {
    while part.len() >= HEADER {
        let length = u32::from_ne_bytes(array(part, 0)) as usize;
        let kind = u16::from_ne_bytes(array(part, 4));
        if length < HEADER || length > part.len() {
            break;
        }
        let message = &part[HEADER..length];
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR if message.len() >= 4 => {
                let number = i32::from_ne_bytes(array(message, 0));
                return Err(io::Error::from_raw_os_error(-number));
            }
            _ if kind == SOCK_DIAG_BY_FAMILY && message.len() >= BEFORE_ID + 48 => {
                found.push(parse_id(&message[BEFORE_ID..], is_ipv6));
            }
            _ => {}
        }
        part = &part[part.len().min(length.next_multiple_of(4))..];
    }
    Ok(false)
}

/// Reads an `inet_diag_sockid`: ports and addresses in network order, interface, cookie.
fn parse_id(id: &[u8], is_ipv6: bool) -> Handshake {
    let end = |port: usize, address: usize| {
        let ip = if is_ipv6 {
            IpAddr::V6(Ipv6Addr::from(array::<16>(id, address)))
        } else {
            IpAddr::V4(Ipv4Addr::from(array::<4>(id, address)))
        };
        SocketAddr::new(ip, u16::from_be_bytes(array(id, port)))
    };
    Handshake {
        local: end(0, 4),
        peer: end(2, 20),
        cookie: u64::from_ne_bytes(array(id, 40)),
    }
}

/// Copies bytes out of the middle of a message.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// The handshakes of one family at all ports, from `/proc/net/tcp` or `tcp6`: where netlink is
/// forbidden, as by systemd's `RestrictAddressFamilies`.
fn by_proc(is_ipv6: bool) -> io::Result<Vec<Handshake>> {
    let path = match is_ipv6 {
        true => "/proc/net/tcp6",
        false => "/proc/net/tcp",
    };
    let table = fs::read_to_string(path)?;
    Ok(table.lines().skip(1).filter_map(parse_line).collect())
}

/// Reads a line of `/proc/net/tcp`, if it is of a handshake: `0: 0100007F:1F90 0200007F:C350 03 …`.
fn parse_line(line: &str) -> Option<Handshake> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, peer, state) = (fields.next()?, fields.next()?, fields.next()?);
    (u32::from_str_radix(state, 16) == Ok(TCP_SYN_RECV)).then_some(())?;
    Some(Handshake {
        local: parse_end(local)?,
        peer: parse_end(peer)?,
        cookie: 0,
    })
}

/// Reads `0100007F:1F90`: the address in words of the machine's byte order, the port as a number.
fn parse_end(end: &str) -> Option<SocketAddr> {
    let (ip, port) = end.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for word in ip.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(array::<4>(&bytes, 0)),
        16 => IpAddr::from(array::<16>(&bytes, 0)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn where_no_handshake_is_under_way_none_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap();
            let _done = TcpStream::connect(at).unwrap();
            assert_eq!(under_way(&[at]).unwrap(), HashSet::new());
            assert!(by_proc(at.is_ipv6()).is_ok());
        }
    }

    /// A listener that waits for a first byte keeps silent peers as handshakes under way.
    #[test]
    fn a_handshake_under_way_is_found_by_both_ways() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            defer_accept(&listener);
            let at = listener.local_addr().unwrap();
            let client = match at.ip().is_unspecified() {
                true => TcpStream::connect(("127.0.0.1", at.port())),
                false => TcpStream::connect(at),
            };
            let client = client.unwrap();
            let silent = client.local_addr().unwrap();
            let is_silent = |it: &Handshake| {
                let peer = (it.peer.ip().to_canonical(), it.peer.port());
                peer == (silent.ip(), silent.port())
            };
            let found = under_way(&[at]).unwrap();
            assert!(found.iter().any(is_silent), "{found:?}");
            assert!(found.iter().all(|it| it.cookie != 0), "{found:?}");
            let mut listed = by_proc(at.is_ipv6()).unwrap().into_iter();
            assert!(listed.any(|it| is_silent(&it) && is_at(&it, &at)));
            // Not of another listener.
            let other = TcpListener::bind("127.0.0.1:0").unwrap();
            let other = other.local_addr().unwrap();
            assert!(!under_way(&[other]).unwrap().iter().any(is_silent));
        }
    }

    fn defer_accept(listener: &TcpListener) {
        use std::os::fd::AsRawFd;
        let seconds: libc::c_int = 30;
        #[allow(unsafe_code)]
        // SAFETY: the option is one C int, which is what is pointed to for the time of the call.
        let done = unsafe {
            libc::setsockopt(
                listener.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_DEFER_ACCEPT,
                (&raw const seconds).cast(),
                size_of_val(&seconds) as libc::socklen_t,
            )
        };
        assert_eq!(done, 0);
    }
}
