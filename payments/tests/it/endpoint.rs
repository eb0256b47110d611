//! The toncenter client against a server that says whatever the test wants.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, channel},
};

use cocoon_payments::{
    Address, NanoTon,
    chain::{AccountStatus, Chain, ChainError, StackValue, Toncenter},
};

/// Answers each request with the next of `answers`; requests arrive at the receiver.
struct Server {
    url: String,
    requests: Receiver<String>,
}

fn serve(answers: Vec<String>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/api/v2", listener.local_addr().unwrap());
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = sender.send(read_request(&stream));
            // A client that refuses an answer hangs up while it is written.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    Server { url, requests }
}

fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0);
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().unwrap())
    });
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn ok(result: &str) -> String {
    http("200 OK", &format!(r#"{{"ok":true,"result":{result},"jsonrpc":"2.0","id":"1"}}"#))
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn account(answer: String) -> Result<cocoon_payments::chain::AccountState, ChainError> {
    let server = serve(vec![answer]);
    let client = Toncenter::new(&server.url, None).unwrap();
    run(client.account(&Address::base([7; 32])))
}

const EMPTY: &str = r#"{"balance":"-1","code":"","data":"","last_transaction_id":
    {"lt":"0","hash":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
    "sync_utime":1790000000,"state":"uninitialized"}"#;

#[test]
fn an_account_that_does_not_exist_is_absent() {
    let state = account(ok(EMPTY)).unwrap();
    assert_eq!((state.status, state.balance), (AccountStatus::Absent, NanoTon::ZERO));
    let funded = EMPTY.replace("\"-1\"", "\"5\"");
    assert_eq!(account(ok(&funded)).unwrap().status, AccountStatus::Uninit);
}

#[test]
fn the_key_travels_in_its_header_and_never_in_an_error() {
    let server = serve(vec![http("401 Unauthorized", r#"{"ok":false,"error":"bad key","code":401}"#)]);
    let client = Toncenter::new(&server.url, Some("sesame".into())).unwrap();
    let error = run(client.account(&Address::base([7; 32]))).unwrap_err();
    assert!(matches!(&error, ChainError::Refused { code: 401, message, .. } if message == "bad key"));
    assert!(!format!("{error} {error:?} {client:?}").contains("sesame"));
    let request = server.requests.recv().unwrap().to_lowercase();
    assert!(request.starts_with("post /api/v2/jsonrpc"), "{request}");
    assert!(request.contains("x-api-key: sesame"));
}

#[test]
fn a_busy_endpoint_is_asked_again() {
    let server =
        serve(vec![http("429 Too Many Requests", r#"{"ok":false,"error":"slow","code":429}"#), ok(EMPTY)]);
    let client = Toncenter::new(&server.url, None).unwrap();
    assert!(run(client.account(&Address::base([7; 32]))).is_ok());
}

#[test]
fn answers_that_are_no_answers_are_errors_that_name_the_method() {
    let cases = [
        http("200 OK", "<html>"),
        http("200 OK", "{}"),
        http("502 Bad Gateway", "<html>"),
        http("302 Found\r\nlocation: http://127.0.0.1:1/", ""),
        ok("null"),
        ok("[]"),
        ok(&EMPTY.replace("1790000000", "-5")),
        ok(&EMPTY.replace("\"code\":\"\"", "\"code\":\"!!\"")),
        ok(&EMPTY.replace("AAAA", "A")),
        ok(&EMPTY.replace("\"-1\"", "\"99999999999999999999\"")),
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"ok\"".into(),
    ];
    for (index, answer) in cases.into_iter().enumerate() {
        // The hash of an account without transactions is not read, so that case is fine.
        let result = account(answer);
        if index == 8 {
            assert!(result.is_ok());
            continue;
        }
        let error = result.unwrap_err().to_string();
        assert!(error.contains("getAddressInformation"), "{index}: {error}");
    }
}

#[test]
fn an_endless_answer_is_cut_off() {
    let huge = format!("{{\"ok\":true,\"result\":\"{}\"}}", "x".repeat(5 * 1024 * 1024));
    assert!(matches!(account(http("200 OK", &huge)), Err(ChainError::TooLarge { .. })));
}

#[test]
fn get_method_results_are_read() {
    let result = r#"{"gas_used":549,"exit_code":0,"stack":[["num","0x2a"],["cell",{"bytes":"te6cckEBAQEAAgAAAEysuc0="}],["list",{}]]}"#;
    let server = serve(vec![ok(result)]);
    let client = Toncenter::new(&server.url, None).unwrap();
    let out = run(client.run_get_method(&Address::base([7; 32]), "seqno", &[StackValue::uint(5)])).unwrap();
    assert_eq!((out.exit_code, out.gas_used, out.stack[0].as_u64()), (0, 549, Some(42)));
    assert!(matches!(out.stack[1], StackValue::Cell(_)));
    assert!(server.requests.recv().unwrap().contains(r#"["num","0x5"]"#));
}

#[test]
fn an_endpoint_that_is_not_there_is_unreachable() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Toncenter::new(&format!("http://{free}"), None).unwrap();
    let error = run(client.head()).unwrap_err();
    assert!(matches!(error, ChainError::Unreachable { .. }) && error.is_transient());
}
