//! What becomes of stand-ins when their servers are well again.

use super::*;

fn restoring() -> String {
    let then = "replace_after = \"10s\"\nthen = \"restore\"\nrestore_after = \"30s\"";
    CONFIG.replace("replace_after = \"10s\"", then)
}

fn replaced(text: &str) -> World {
    let mut w = World::of(text, Recall::Forgot("new".into()), Kernel::new());
    w.members(vec![]);
    w.all_pass(&[1, 2, 3]);
    w.dies(1);
    w.members(vec![member("m1", 1, 9, Want::Attach)]);
    w.all_pass(&[9]);
    assert_eq!(w.in_service(80), [2, 3, 9]);
    w
}

#[test]
fn a_server_that_is_well_again_leaves_its_place_to_its_spare() {
    let mut w = replaced(CONFIG);
    w.all_pass(&[1]);
    w.passes(3600);
    assert_eq!(w.in_service(80), [2, 3, 9]);
    assert!(w.core.outbox().releases.is_empty());
}

#[test]
fn a_server_that_is_well_again_for_long_enough_gets_its_place_back() {
    let mut w = replaced(&restoring());
    w.all_pass(&[1]);
    assert_eq!(w.core.next_deadline(at(w.now)), Some(at(w.now + 30)));
    w.passes(29);
    assert!(w.core.outbox().releases.is_empty());
    let notes = w.passes(1);
    assert!(matches!(notes[..], [Note::GivenBack(_, true)]), "{notes:?}");
    let id: ReplacementId = "m1".parse().unwrap();
    assert_eq!(w.core.outbox().releases, [id.clone()].into());
    assert_eq!(
        w.in_service(80),
        [2, 3, 9],
        "until the provisioner takes it back"
    );
    w.members(vec![member("m1", 1, 9, Want::Withdraw)]);
    assert_eq!(w.in_service(80), [1, 2, 3]);
    assert!(w.core.outbox().confirms.is_empty(), "its connections go on");
    w.counted(None);
    assert_eq!(w.core.outbox().confirms, [(id, Want::Withdraw)].into());
}

#[test]
fn a_server_that_falls_again_or_is_put_aside_does_not_get_its_place_back() {
    let mut w = replaced(&restoring());
    w.all_pass(&[1]);
    w.passes(30);
    assert_eq!(w.core.outbox().releases.len(), 1);
    w.dies(1);
    w.passes(1);
    assert!(w.core.outbox().releases.is_empty());
}

#[test]
fn a_replacement_is_called_off_only_as_long_as_its_spare_is_not_tested() {
    for (state, cancels) in [
        (ReplacementState::Configuring, 1),
        (ReplacementState::Testing, 0),
    ] {
        let mut w = World::fresh();
        w.all_pass(&[1, 2, 3]);
        w.dies(1);
        w.passes(10);
        let key = w.requests().pop().unwrap();
        w.event(answer(&key, "r1", state, None));
        w.all_pass(&[1]);
        assert_eq!(w.core.outbox().cancels.len(), cancels, "{state:?}");
    }
}
