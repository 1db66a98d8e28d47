//! What several tests need.

use std::process::Command;

/// Runs the test `name` of this program, one that is ignored otherwise, in a new network namespace
/// (of a new user namespace, so that it needs no privilege) after the shell commands `setup`.
/// Panics unless it passes.
pub(crate) fn in_new_namespace(setup: &str, name: &str) {
    let program = std::env::current_exe().unwrap();
    let out = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--", "sh", "-ec"])
        .arg(format!("{setup}\nexec \"$0\" --exact --ignored \"$1\""))
        .args([program.as_os_str(), name.as_ref()])
        .output()
        .expect("unshare of util-linux runs");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
