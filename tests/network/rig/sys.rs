//! The system calls that no safe library offers.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use socket2::SockAddr;

/// Gives the calling thread a network namespace of its own.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: no memory is touched, and the table of descriptors stays shared.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// Makes a TUN device in the calling thread's namespace: each read and each write is an IP packet.
pub fn tun(name: &str) -> io::Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: `TUNSETIFF` reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    Ok(device)
}

/// Gives a device of the calling thread's namespace an address and a route to its peer.
pub fn set_addresses(name: &str, ours: Ipv4Addr, peer: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_addr = address(ours);
    configure(libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_dstaddr = address(peer);
    configure(libc::SIOCSIFDSTADDR, &mut request)
}

/// Gives a device that is up an IPv6 address, and a route to all that share its first 64 bits.
pub fn add_v6_address(name: &str, ours: Ipv6Addr) -> io::Result<()> {
    let mut request = request(name);
    configure(libc::SIOCGIFINDEX, &mut request)?;
    let mut request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr {
            s6_addr: ours.octets(),
        },
        ifr6_prefixlen: 64,
        // SAFETY: all of `ifreq` was initialized, and the kernel has set this one.
        ifr6_ifindex: unsafe { request.ifr_ifru.ifru_ifindex },
    };
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)?;
    // SAFETY: `SIOCSIFADDR` of an IPv6 socket reads one `in6_ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &mut request) })
}

/// How many packets wait for the reader of a TUN device; more are lost.
pub fn set_queue_length(name: &str, packets: i32) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_metric = packets;
    configure(libc::SIOCSIFTXQLEN, &mut request)
}

pub fn set_up(name: &str) -> io::Result<()> {
    let mut request = request(name);
    configure(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel has set the flags, which are what is in the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
    configure(libc::SIOCSIFFLAGS, &mut request)
}

/// Binds a socket to an interface by number, which need not exist.
pub fn bind_to_interface(socket: BorrowedFd<'_>, index: i32) -> io::Result<()> {
    // SAFETY: the option is an `int`, of which pointer and size are given.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw const index).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })
}

/// The interface a socket is bound to; 0 is none.
pub fn bound_to_interface(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut index = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option is an `int`, of which pointer and size are given.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut index).cast(),
            &mut length,
        )
    })?;
    Ok(index)
}

/// Lets the calling thread run whenever it can, before all that are not as urgent.
pub fn be_urgent() -> io::Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: one `sched_param` is read.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &lowest) })
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is made of integers and a union of integers and pointers, all valid as zeros.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let short = name.bytes().take(libc::IFNAMSIZ - 1);
    for (to, from) in request.ifr_name.iter_mut().zip(short) {
        *to = from as c_char;
    }
    request
}

fn address(address: Ipv4Addr) -> libc::sockaddr {
    let address = SockAddr::from(SocketAddrV4::new(address, 0));
    // SAFETY: it is a `sockaddr_in`, which is as long as a `sockaddr` and made of integers.
    unsafe { *address.as_ptr().cast() }
}

fn configure(what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: all requests about interfaces that are made here read or write one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what as _, request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// libc has it for Android alone.
const SO_BINDTOIFINDEX: libc::c_int = 62;
