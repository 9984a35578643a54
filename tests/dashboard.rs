//! The example `dashboard`: what it sends, and what one sees who opens it in a browser and presses its
//! button.

#[path = "support/program.rs"]
mod program;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use program::{PATIENCE, Program};

/// Starts the example on free ports; gives the address of its page.
#[track_caller]
fn dashboard() -> (Program, String) {
    let dashboard = Program::example("dashboard", &["127.0.0.1:0", "127.0.0.1:0"]);
    let _of_the_server = dashboard.addresses();
    let page = dashboard.addresses().remove(0);
    (dashboard, page)
}

#[track_caller]
fn ask(page: &str, request: &str) -> TcpStream {
    let mut client = TcpStream::connect(page).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: {page}\r\n");
    client.write_all(request.as_bytes()).unwrap();
    client
}

#[track_caller]
fn rest(mut client: TcpStream, headers: &str) -> String {
    let headers = format!("{headers}Connection: close\r\n\r\n");
    client.write_all(headers.as_bytes()).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn the_events_end_with_the_report() {
    let (dashboard, page) = dashboard();
    let shown = rest(ask(&page, "GET /"), "");
    assert!(shown.starts_with("HTTP/1.1 200 OK\r\n"), "{shown}");
    assert!(shown.contains("new EventSource(\"events\")") && shown.contains("</html>"));

    let mut events = ask(&page, "GET /events");
    events.write_all(b"\r\n").unwrap();
    let mut told = String::new();
    while !told.contains("\"state\":\"serving\"") {
        let mut some = [0; 4096];
        let length = events.read(&mut some).unwrap();
        assert_ne!(length, 0, "{told}");
        told.push_str(std::str::from_utf8(&some[..length]).unwrap());
    }
    assert!(told.contains("\r\ncontent-type: text/event-stream\r\n"));
    // A page of somebody else's can send this much, and does not stop the server.
    let refused = rest(ask(&page, "POST /shutdown"), "Content-Length: 0\r\n");
    assert!(refused.starts_with("HTTP/1.1 404 "), "{refused}");
    let taken = rest(
        ask(&page, "POST /shutdown"),
        "Content-Length: 0\r\nX-Dashboard: 1\r\n",
    );
    assert!(taken.starts_with("HTTP/1.1 202 "), "{taken}");
    let mut last = String::new();
    events.read_to_string(&mut last).unwrap();
    let last = last.rsplit("data: ").next().unwrap();
    assert!(last.contains("\"state\":\"closed\""), "{last}");
    assert!(last.contains("\"report\":\"stopped (the button was pressed) after "));
    assert!(last.contains("\"active\":0}}\n\n\r\n0\r\n\r\n"), "{last}");
    let ended = dashboard.end();
    ended.assert(0);
}

#[test]
#[ignore = "needs chromium, and python3 with websockets"]
fn the_button_drains_the_server_to_the_end_before_ones_eyes() {
    let (dashboard, page) = dashboard();
    let test = std::env::current_exe().unwrap();
    let tools = test
        .ancestors()
        .nth(3)
        .unwrap()
        .join("ci-tools/bin/python3");
    // That of `.ci/run`, or else the machine's.
    let python = if tools.exists() {
        tools
    } else {
        PathBuf::from("python3")
    };
    let mut command = Command::new(python);
    command.arg(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/foreign/browser.py"
    ));
    command.arg(format!("http://{page}/"));
    let browser = Program::start(command);
    assert_eq!(browser.line(), "it serves");
    assert_eq!(browser.line(), "The door is shut");
    let report = browser.line();
    assert!(
        report.starts_with("stopped (the button was pressed) after "),
        "{report}"
    );
    browser.end().assert(0);
    dashboard.end().assert(0);
}
