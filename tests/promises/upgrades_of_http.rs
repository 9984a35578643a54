//! A server that speaks HTTP, replaced as those in `upgrades.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use gracious::{Handover, web};

use crate::http::{closes, get, response};
use crate::support::TestRuntime;
use crate::support::client::{Client, rounds};
use crate::support::peer::{Process, settled, tell};
use crate::upgrades::{hears, number, obey};

crate::on_every_runtime_in_a_process!(
    a_web_server_is_replaced_under_load_and_no_request_fails: web_generation, replaces_a_web_server;
);

/// One generation's life of a server that speaks HTTP.
async fn web_generation(runtime: TestRuntime) {
    let handover = Handover::inherit().unwrap();
    // Connections that are used are told in time: within the lame duck each has had an answer that says
    // that it is the last.
    let server = crate::support::server(runtime)
        .handover(&handover)
        .lame_duck(Duration::from_millis(500))
        .listen_named("web", "127.0.0.1:0")
        .bind()
        .await
        .unwrap();
    if !handover.has_predecessor() {
        tell("address", &server.local_addrs()[0]);
    }
    let handle = server.handle();
    let running = server.spawn(web::serve(move |request: web::Request| {
        let handle = handle.clone();
        async move {
            let order = request.uri().path()[1..].to_owned();
            web::Response::new(obey(&order, &handle, "").await)
        }
    }));
    handover.ready().await.unwrap();
    tell("said", format!("{} serves", number()));
    let report = settled(running.await);
    assert!(report.is_clean(), "{report}");
    tell("said", format!("{} ended: {}", number(), report.reason));
}

/// No client asks again: each request is answered on the connection that it was sent on.
fn replaces_a_web_server(mut process: Process) {
    let address = process.address();
    hears(&mut process, ["1 serves".into()]);
    let ask = |order: &str| {
        let mut client = Client::connect(&address).unwrap();
        client.send(&get(&format!("/{order}")));
        response(&mut client).1
    };
    let is_over = Arc::new(AtomicBool::new(false));
    let load = [(); 3].map(|()| {
        let (address, is_over) = (address.clone(), is_over.clone());
        thread::spawn(move || {
            let mut told = 0;
            while !is_over.load(SeqCst) {
                let mut client = Client::connect(&address).unwrap();
                while !is_over.load(SeqCst) {
                    client.send(&get("/hello"));
                    let (head, body) = response(&mut client);
                    assert!(head.starts_with("http/1.1 200"), "{head}");
                    assert!(body.ends_with(" hello"), "{body}");
                    if closes(&head) {
                        assert_eq!(client.rest(), "");
                        told += 1;
                        break;
                    }
                }
            }
            told
        })
    });
    let upgrades = rounds(3) as u32;
    for generation in 2..=upgrades + 1 {
        assert_eq!(ask("upgrade"), "done");
        let (old, new) = (generation - 1, generation);
        let said = [format!("{old} ended: handed over"), format!("{new} serves")];
        hears(&mut process, said);
        assert_eq!(ask("hello"), format!("{generation} hello"));
    }
    is_over.store(true, SeqCst);
    let told: u32 = load.map(|it| it.join().unwrap()).iter().sum();
    assert!(told >= 3 * upgrades, "{told}");
    assert_eq!(ask("stop"), "stopping");
    hears(&mut process, [format!("{} ended: requested", upgrades + 1)]);
    process.ends_with(0);
}
