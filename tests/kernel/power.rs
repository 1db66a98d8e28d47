//! Power is lost in the middle of a step, for the provisioner, the director and the spares at once:
//! what was not on a disk by then is gone. tests/vm/power runs both halves, each in a boot of its
//! own, with one disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use understudy::model::inventory::ServerState;

use crate::kills::{Cluster, PATIENCE, SPARES, STARTS, WIRING, started, wait_for_line};
use crate::lab::server::Tree;
use crate::lab::{Lab, show, wait_for};

/// Long enough to be in the middle of.
const SCRIPT: Duration = Duration::from_secs(8);

fn disk() -> PathBuf {
    let device = std::env::var_os("LAB_STATE").expect("run by tests/vm/power");
    let at = PathBuf::from("/run/lab-kept");
    fs::create_dir_all(&at).unwrap();
    let (device, none) = (Path::new(&device), None::<&Path>);
    mount(Some(device), &at, Some("ext4"), MsFlags::empty(), none).unwrap();
    at
}

fn lab(at: &Path, web1: Tree) -> Lab {
    let servers = [
        ("web1", web1),
        ("web2", Tree::Web),
        (SPARES[0], Tree::Idle),
        (SPARES[1], Tree::Idle),
    ];
    Lab::kept(at, WIRING, &servers)
}

#[test]
#[ignore = "ends the guest: tests/vm/power"]
fn lost() {
    let at = disk();
    let lab = lab(&at, Tree::Web);
    let cluster = Cluster::start(&lab, "before", SCRIPT);
    // What was installed before is on disk, as on a server that has run for a while; from here on
    // only what the products themselves see to.
    nix::unistd::sync();
    lab.server("web1").kill_nginx();
    let spare = wait_for(
        "start of the script",
        PATIENCE,
        Duration::from_millis(5),
        || started(&lab).ok_or_else(|| cluster.provisioner.log()),
    );
    show(&format!("power: lost while {} runs its script", spare.name));
    fs::write("/proc/sysrq-trigger", "b").unwrap();
    panic!("the guest goes on without power");
}

#[test]
#[ignore = "the second half: tests/vm/power"]
fn back() {
    let at = disk();
    // Switched on again it runs what it ran, but for the service that had failed.
    let lab = lab(&at, Tree::Idle);
    let cluster = Cluster::go_on(&lab, "after", SCRIPT);
    // The store is what it was: nothing is applied, and the failure is known.
    wait_for_line(&cluster.provisioner, "provisioner is ready");
    let all = cluster.replacements().unwrap();
    assert_eq!(all.len(), 1, "{all:#?}");
    // Its journal says who was at work.
    let claimed = all[0].steps[0].server.clone();
    let replacement = cluster.wait_for_stand_in();
    assert_eq!(replacement.id, all[0].id);
    let serving = replacement.spare.clone().unwrap().name;
    show(&format!(
        "power: {claimed} was at work when it was lost, {serving} serves"
    ));

    for view in cluster.inventory() {
        let name = view.server.name.as_str();
        let expected = match name {
            "web1" => ServerState::Failed,
            "web2" => ServerState::Serving,
            _ if name == serving => ServerState::Serving,
            // Nobody knows how far its script came.
            _ if name == claimed => ServerState::Quarantined,
            _ => ServerState::Ready,
        };
        assert_eq!(view.state, expected, "{view:#?}");
    }
    for name in SPARES {
        // What a script wrote last may be lost with the power, a second run may not be there.
        let starts = lab.server(name).read(STARTS);
        assert!(starts.lines().count() <= 1, "{name}: {starts}");
    }
}
