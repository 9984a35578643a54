//! The link does to packets what it is told to.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::link::{CLIENT, Link, SERVER};
use crate::rig::relay::Conditions;

#[test]
#[ignore = "needs root and network namespaces"]
fn a_round_trip_takes_its_time() {
    let Some(link) = Link::lay(1) else { return };
    let listener = link.server.run(|| TcpListener::bind((SERVER, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    for round_trip_ms in [0, 40, 200] {
        link.relay.set(Conditions::wide_area(round_trip_ms, 0.0));
        let took = link.client.run(|| {
            let start = Instant::now();
            TcpStream::connect(address).unwrap();
            start.elapsed()
        });
        let round_trip = Duration::from_millis(round_trip_ms);
        assert!(took >= round_trip, "{took:?} instead of {round_trip:?}");
        // A SYN that was lost would have been sent again a second later.
        assert!(took < round_trip + Duration::from_millis(700), "{took:?}");
    }
}

#[test]
#[ignore = "needs root and network namespaces"]
fn so_many_packets_are_lost_and_overtaken() {
    let Some(link) = Link::lay(2) else { return };
    link.relay.set(Conditions {
        loss: 0.1,
        ..Conditions::wide_area(40, 0.0)
    });
    let server = link.server.run(|| UdpSocket::bind((SERVER, 0)).unwrap());
    let client = link.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    client.connect(server.local_addr().unwrap()).unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let (received, overtaken) = thread::scope(|scope| {
        // Beside the thread that sends: a socket has room for few packets.
        let receiving = scope.spawn(|| receive(&server));
        for number in 0..SENT {
            client.send(&number.to_be_bytes()).unwrap();
            if number % 20 == 19 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        receiving.join().unwrap()
    });
    let lost = link.relay.lost();
    // Of IPv6, which looks for neighbours, some may be among them.
    let datagrams = lost
        .iter()
        .filter(|lost| lost.to_server && lost.length == 32);
    assert_eq!(received + datagrams.count() as u32, SENT);
    assert!(
        (SENT / 20..SENT / 6).contains(&(SENT - received)),
        "{received}"
    );
    assert!(overtaken > 0);
}

/// How many come until none does any more, and how many of them behind later ones.
fn receive(socket: &UdpSocket) -> (u32, u32) {
    let (mut received, mut overtaken, mut last) = (0, 0, 0);
    let mut bytes = [0; 4];
    while let Ok(_length) = socket.recv(&mut bytes) {
        let number = u32::from_be_bytes(bytes);
        received += 1;
        overtaken += u32::from(number < last);
        last = last.max(number);
    }
    (received, overtaken)
}

const SENT: u32 = 2000;
