//! For tests: a server that hears and says what is written down.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread::{self, JoinHandle},
};

pub(super) use crate::check::testing::fail as failed;
use crate::{
    check::testing::{LONG, prepared},
    model::{CheckKind, Found, Outcome},
};

/// What it heard after its last word.
pub(super) type Heard = JoinHandle<Vec<u8>>;

/// Takes one connection; of each pair it hears the first exactly, and then says the second.
pub(super) fn server(script: &[(&[u8], &[u8])]) -> (SocketAddr, Heard) {
    let script: Vec<(Vec<u8>, Vec<u8>)> = script
        .iter()
        .map(|(hear, say)| (hear.to_vec(), say.to_vec()))
        .collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let heard = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for (hear, say) in script {
            let mut heard = vec![0; hear.len()];
            stream.read_exact(&mut heard).unwrap();
            assert_eq!(
                heard.escape_ascii().to_string(),
                hear.escape_ascii().to_string()
            );
            stream.write_all(&say).unwrap();
        }
        let mut rest = Vec::new();
        // A probe that has heard enough may close by a reset.
        let _closed = stream.read_to_end(&mut rest);
        rest
    });
    (at, heard)
}

pub(super) async fn found(at: SocketAddr, kind: CheckKind) -> Found {
    prepared(kind, LONG).probe(at).await
}

/// The outcome of a talk, and what is noted for people.
pub(super) async fn talk(
    script: &[(&[u8], &[u8])],
    kind: CheckKind,
) -> (Outcome, Option<String>, Vec<u8>) {
    let (at, heard) = server(script);
    let found = found(at, kind).await;
    let detail = found.detail.map(|detail| detail.to_string());
    (found.outcome, detail, heard.join().unwrap())
}

/// A file of credentials; it lives as long as what is returned.
pub(super) fn credentials(line: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{line}").unwrap();
    file
}
