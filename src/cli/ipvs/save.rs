//! `understudy ipvs save`.

use super::{Failure, block_on, connect, kernel, note, plain, say};
use crate::import::ipvsadm;

pub(super) fn run() -> Result<(), Failure> {
    let table = block_on(async { connect().await?.table().await.map_err(kernel) })?;
    let table = plain(&table);
    for (service, dest) in ipvsadm::left_out(&table) {
        note(&format!(
            "left out: {dest} in {service}: ipvsadm has no word for its forwarding method"
        ));
    }
    say(&ipvsadm::write(&table))
}
