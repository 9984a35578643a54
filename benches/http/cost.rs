//! What a request costs.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use benches::process::ServerProcess;
use benches::servers;
use benches::servers::http::{PAIRS, SERVERS};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

const CLIENTS: [usize; 2] = [50, 500];
const REQUESTS: usize = 60_000;
const WARM_UP: usize = 10_000;

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

pub(crate) fn run(rounds: usize) -> io::Result<()> {
    println!("| clients | server | µs | beside | µs | ratio | of the rounds |");
    println!("|---:|---|---:|---|---:|---:|---|");
    for clients in CLIENTS {
        // By server, then by round.
        let mut costs = vec![Vec::new(); SERVERS.len()];
        for round in 0..rounds {
            for turn in 0..SERVERS.len() {
                let index = if round % 2 == 0 {
                    turn
                } else {
                    SERVERS.len() - 1 - turn
                };
                costs[index].push(cost(SERVERS[index].name, clients)?);
            }
        }
        let of = |name: &str| {
            let index = SERVERS.iter().position(|server| server.name == name);
            index.map_or(&[][..], |index| &costs[index])
        };
        for (name, reference) in PAIRS {
            let ratios: Vec<f64> = of(name)
                .iter()
                .zip(of(reference))
                .map(|(a, b)| a / b)
                .collect();
            let (least, most) = ratios
                .iter()
                .fold((f64::MAX, 0.0_f64), |(least, most), ratio| {
                    (least.min(*ratio), most.max(*ratio))
                });
            println!(
                "| {clients} | {name} | {:.2} | {reference} | {:.2} | {:.2} | {least:.2} to {most:.2} |",
                median(of(name)),
                median(of(reference)),
                median(&ratios),
            );
        }
    }
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Microseconds of the server's processor time per request.
fn cost(name: &str, clients: usize) -> io::Result<f64> {
    let server = ServerProcess::start(servers::find(name)?)?;
    let mut load = Load::open(server.address(), clients)?;
    load.run(WARM_UP)?;
    let before = server.processor_time()?;
    load.run(REQUESTS)?;
    let took: Duration = server.processor_time()? - before;
    Ok(took.as_secs_f64() * 1e6 / REQUESTS as f64)
}

/// Clients that ask whenever they are answered.
struct Load {
    epoll: std::os::fd::OwnedFd,
    clients: Vec<TcpStream>,
    /// How long a response is: as long as the first.
    length: usize,
}

impl Load {
    fn open(server: SocketAddr, clients: usize) -> io::Result<Self> {
        let mut load = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            clients: Vec::new(),
            length: 0,
        };
        for index in 0..clients {
            let mut client = TcpStream::connect(server)?;
            client.write_all(REQUEST)?;
            let mut response = Vec::new();
            while !response.ends_with(b"world\n") {
                let mut byte = [0];
                client.read_exact(&mut byte)?;
                response.extend(byte);
            }
            load.length = response.len();
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&load.epoll, &client, data, epoll::EventFlags::IN)?;
            load.clients.push(client);
        }
        Ok(load)
    }

    /// Returns when so many requests have been answered.
    fn run(&mut self, requests: usize) -> io::Result<()> {
        let mut left = requests;
        let mut awaited = vec![0; self.clients.len()];
        for (client, awaited) in self.clients.iter_mut().zip(&mut awaited) {
            client.write_all(REQUEST)?;
            *awaited = self.length;
            left -= 1;
        }
        let mut unanswered = requests;
        let mut events = Vec::with_capacity(1024);
        let mut buffer = [0; 1024];
        while unanswered > 0 {
            epoll::wait(&self.epoll, spare_capacity(&mut events), None)?;
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                let client = &mut self.clients[index];
                let len = client.read(&mut buffer)?;
                if len == 0 || len > awaited[index] {
                    return Err(io::Error::other("a response is not as the first was"));
                }
                awaited[index] -= len;
                if awaited[index] > 0 {
                    continue;
                }
                unanswered -= 1;
                if left > 0 {
                    left -= 1;
                    client.write_all(REQUEST)?;
                    awaited[index] = self.length;
                }
            }
        }
        Ok(())
    }
}
