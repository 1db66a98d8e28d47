//! The inventory folder: the shipped example loads, and bad folders say where they are bad.

use std::{fs, path::Path, time::Duration};

use understudy::provisioner::folder;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_example_loads() {
    let inventory = folder::load(&Path::new(ROOT).join("config/inventory")).unwrap();
    let role = inventory.roles.get("web.shop.example").unwrap();
    assert_eq!(role.software, ["nginx"]);
    let nginx = inventory.software.first().unwrap();
    assert_eq!(nginx.timeout, Duration::from_secs(300));
    assert!(nginx.script.starts_with("#!/bin/sh\n"));
    assert_eq!(inventory.files.len(), 2);
    let spares = inventory.servers.values().filter(|s| s.role.is_none());
    assert_eq!(spares.count(), 2);
    let spare2 = inventory.servers.get("spare2").unwrap();
    assert_eq!(spare2.ssh_port, 2222);
}

/// Each folder in `tests/it/inventory` holds a `stderr` with all that is to be said of it.
/// `UPDATE_GOLDEN=1` writes it anew, for review.
#[test]
fn bad_folders_say_every_mistake_at_its_place() {
    let mut seen = 0;
    for entry in fs::read_dir(Path::new(ROOT).join("tests/it/inventory")).unwrap() {
        let dir = entry.unwrap().path();
        let said = folder::load(&dir).expect_err("a bad folder").to_string();
        let said = said.replace(&format!("{}/", dir.display()), "") + "\n";
        let golden = dir.join("stderr");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &said).unwrap();
        }
        let wanted = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(said, wanted, "{}", golden.display());
        seen += 1;
    }
    assert!(seen > 0);
}
