//! What checks make of a server's bytes, without the talk around it.

#[path = "../../src/check/kinds/smtp/reply.rs"]
mod reply;
#[path = "../../src/check/kinds/mysql/wire.rs"]
mod wire;
#[path = "../../src/check/kinds/words.rs"]
mod words;

use tokio_util::bytes::BytesMut;

/// Reads bytes in the way that the first of them names.
pub fn read(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, line)) => drop(words::read(&String::from_utf8_lossy(line))),
        Some((1, bytes)) => mail(bytes),
        Some((_, bytes)) => database(bytes),
        None => {}
    }
}

fn mail(bytes: &[u8]) {
    let mut seen = BytesMut::from(bytes);
    while let Ok(Some(reply)) = reply::take(&mut seen) {
        assert!((100..=999).contains(&reply.code));
        let _offered: bool = reply.offers("STARTTLS");
    }
}

fn database(bytes: &[u8]) {
    drop(wire::opening(bytes));
    drop(wire::reply(bytes));
    let mut seen = BytesMut::from(bytes);
    while let Ok(Some(packet)) = wire::packet(&mut seen) {
        drop(wire::opening(&packet.body));
        drop(wire::reply(&packet.body));
    }
}
