//! Kubernetes' order of events: a pod is told to stop, and only afterwards, whenever it is, the others hear
//! that it goes. Until then they send new clients to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, RwLock};
use std::thread;

use gracious::{Address, Running};

use crate::support::TestRuntime;
use crate::support::client::{Client, HOUR, echo, eventually, refuses};
use crate::support::peer::{at_home, settled};
use crate::{asked, get, on_every_runtime, says};

on_every_runtime!(a_rolling_restart_whose_news_comes_late_loses_nobody);

const CLIENTS: usize = 3;

/// A pod that is ready.
async fn pod(runtime: &TestRuntime) -> Running {
    let server = at_home(runtime).health("127.0.0.1:0").lame_duck(HOUR);
    let running = server.bind().await.unwrap().spawn(echo);
    let health = asked(&running.handle());
    eventually("it is ready", || get(&health, "/ready") == says("ready"));
    running
}

async fn a_rolling_restart_whose_news_comes_late_loses_nobody(runtime: TestRuntime) {
    let mut pods = vec![pod(&runtime).await, pod(&runtime).await];
    let address = |pod: &Running| pod.handle().local_addrs()[0].clone();
    // Who is on the way to an address by the list has it locked: when an address is taken out, nobody is.
    let endpoints: Arc<RwLock<Vec<Address>>> =
        Arc::new(RwLock::new(pods.iter().map(address).collect()));
    let (is_over, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (endpoints, is_over) = (endpoints.clone(), is_over.clone());
            let answered = answered.clone();
            thread::spawn(move || {
                for round in number.. {
                    if is_over.load(SeqCst) {
                        return;
                    }
                    let on_the_way = endpoints.read().unwrap();
                    let address = &on_the_way[round % on_the_way.len()];
                    let mut client = Client::connect(address).unwrap();
                    // New clients do not wait for the news; what they ask is answered after it, too.
                    assert_eq!(client.ask("hello"), "hello");
                    client.send("good");
                    drop(on_the_way);
                    assert_eq!(client.ask("bye"), "goodbye");
                    answered.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    for round in 0..4 {
        let old = pods.remove(0);
        let (handle, leaving) = (old.handle(), address(&old));
        let health = asked(&handle);
        let next = pod(&runtime).await;
        endpoints.write().unwrap().push(address(&next));
        pods.push(next);
        handle.shutdown();
        // The news is on its way, and clients come all the while.
        let before = handle.stats().accepted;
        eventually("clients come", || {
            handle.stats().accepted >= before + 2 * CLIENTS as u64
        });
        // As the readiness probe of the pod's spec.
        assert_eq!(get(&health, "/ready"), says("draining"), "round {round}");
        assert_eq!(get(&health, "/live"), says("alive"));
        assert!(!refuses(&leaving));
        endpoints.write().unwrap().retain(|it| *it != leaving);
        // The lame duck is over.
        handle.shutdown_within(HOUR / 2);
        let report = settled(old.await);
        assert!(report.is_clean(), "{report}");
        assert!(refuses(&leaving));
    }
    is_over.store(true, SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    assert!(answered.load(SeqCst) > 0);
    for pod in pods {
        pod.handle().shutdown_within(HOUR / 2);
        let _report = settled(pod.await);
    }
}
