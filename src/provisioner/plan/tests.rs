use super::*;
use crate::{model::CheckKind, provisioner::testing::*};

#[test]
fn looks_up_role_catalogue_scripts_files_and_services() {
    let brief = world().brief(ip("10.0.0.1"), &[ip("10.0.0.1")]).unwrap();
    assert_eq!(brief.role.code, "web.shop.example");
    assert_eq!(
        brief.software.iter().map(|s| &s.name).collect::<Vec<_>>(),
        ["storage", "nginx"]
    );
    assert_eq!(brief.files.len(), 1);
    // Two directors register the same two services: each stands once.
    assert_eq!(brief.services.len(), 2);
    assert_eq!(brief.need.families.len(), 2);
    assert_eq!(brief.need.failed, "web1");
}

#[test]
fn a_script_for_the_system_goes_before_one_for_any() {
    let mut all = inventory().software;
    let any = script_for(&all, "nginx", "debian-12").unwrap().clone();
    assert_eq!(any.os, None);
    let mut special = any;
    special.os = Some("debian-12".into());
    all.push(special);
    let found = script_for(&all, "nginx", "debian-12").unwrap();
    assert_eq!(found.os.as_deref(), Some("debian-12"));
    assert!(script_for(&all, "nginx", "debian-11").unwrap().os.is_none());
    assert!(script_for(&all, "apache", "debian-12").is_none());
}

#[test]
fn what_is_missing_has_a_name() {
    let whole = world();
    let code = |w: &World| {
        w.brief(ip("10.0.0.1"), &[ip("10.0.0.1")])
            .map_err(|m| m.code())
            .err()
    };
    assert_eq!(code(&whole), None);
    let mut w = whole.clone();
    w.assignments.clear();
    assert_eq!(code(&w), Some("role_unknown"));
    let mut w = whole.clone();
    w.roles.clear();
    assert_eq!(code(&w), Some("role_undefined"));
    let mut w = whole.clone();
    w.roles.values_mut().for_each(|role| role.software.clear());
    assert_eq!(code(&w), Some("catalogue_empty"));
    let mut w = whole;
    w.software.retain(|s| s.name != "nginx");
    let miss = w.brief(ip("10.0.0.1"), &[ip("10.0.0.1")]).unwrap_err();
    assert_eq!(miss.code(), "script_missing");
    assert!(
        miss.to_string()
            .contains("script_missing(nginx, debian-12)")
    );
}

#[test]
fn plans_the_five_steps() {
    let world = world();
    let brief = world.brief(ip("10.0.0.1"), &[ip("10.0.0.1")]).unwrap();
    let steps = steps(&brief, &world.servers["spare1"].server, "lb1-x-1").unwrap();
    let names: Vec<String> = steps.iter().map(Step::name).collect();
    assert_eq!(
        names,
        [
            "fence",
            "os",
            "install:storage",
            "install:nginx",
            "configure:storage",
            "configure:nginx",
            "test"
        ]
    );
    let Step::Install { job, variables, .. } = &steps[3] else {
        panic!("{:?}", steps[3])
    };
    assert_eq!(job, "lb1-x-1-3");
    assert_eq!(variables["UNDERSTUDY_ADDRESS_V6"], "fd00::11");
    let Step::Test {
        digests, answers, ..
    } = &steps[6]
    else {
        panic!("{:?}", steps[6])
    };
    assert_eq!(digests.len(), 1);
    // The spare's address of each service's family, the configured server's port.
    let at: Vec<String> = answers.iter().map(|a| a.at.to_string()).collect();
    assert_eq!(at, ["10.0.0.11:8080", "[fd00::11]:80"]);
    assert!(matches!(answers[0].kind, CheckKind::Http { .. }));
}

#[test]
fn a_stand_ins_services_are_its_origins() {
    let mut world = world();
    let id: ReplacementId = "lb1-r1".parse().unwrap();
    for address in ["10.0.0.11", "fd00::11"] {
        world.assignments.insert(
            ip(address),
            Assignment {
                role: "web.shop.example".into(),
                server: "spare1".into(),
                source: Source::Replacement(id.clone()),
                passed_on: None,
            },
        );
    }
    let brief = world.brief(ip("10.0.0.11"), &[ip("10.0.0.1")]).unwrap();
    assert_eq!(brief.need.failed, "spare1");
    assert_eq!(brief.services.len(), 2);
}

/// A role of software named by letters, and what each needs.
fn needing(role: &str, needs: &[(&str, &str)]) -> Result<String, Miss> {
    let mut inventory = inventory();
    let letters = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
    let like = inventory.software.remove(0);
    let software: Vec<_> = needs
        .iter()
        .map(|(name, needs)| Software {
            name: (*name).to_owned(),
            needs: letters(needs),
            ..like.clone()
        })
        .collect();
    let role = Role {
        software: letters(role),
        ..inventory.roles["web.shop.example"].clone()
    };
    let order = ordered(&role, &software)?;
    Ok(order.into_iter().map(|s| s.name).collect())
}

#[test]
fn what_is_needed_is_installed_first_and_the_rest_as_listed() {
    let free = [("a", ""), ("b", ""), ("c", "")];
    assert_eq!(needing("cab", &free).unwrap(), "cab");
    assert_eq!(
        needing("abc", &[("a", "c"), ("b", ""), ("c", "")]).unwrap(),
        "bca"
    );
    assert_eq!(
        needing("abc", &[("a", "b"), ("b", "c"), ("c", "")]).unwrap(),
        "cba"
    );
    let circle = needing("ab", &[("a", "b"), ("b", "a")]).unwrap_err();
    assert_eq!(circle.code(), "need_unmet");
    let lacking = needing("a", &[("a", "z")]).unwrap_err().to_string();
    assert!(lacking.contains("needs z"), "{lacking}");
}

#[test]
fn the_way_back_is_asked_of_nat_and_the_virtual_address_of_direct_routing() {
    let mut world = world();
    let of = |world: &World| {
        let brief = world
            .brief(ip("10.0.0.1"), &[ip("10.0.0.1"), ip("fd00::1")])
            .unwrap();
        let steps = steps(&brief, &world.servers["spare1"].server, "j").unwrap();
        match steps.last().unwrap() {
            Step::Test { paths, .. } => paths.clone(),
            other => panic!("{other:?}"),
        }
    };
    // Of NAT only where the role says who the director is there. In IPv6 neighbours ask too.
    let holds = PathTest::Holds {
        vip: ip("2001:db8::1"),
        quiet_at: Some(ip("fd00::11")),
    };
    assert_eq!(of(&world).as_slice(), std::slice::from_ref(&holds));
    let role = world.roles.get_mut("web.shop.example").unwrap();
    role.gateways = vec![ip("10.0.0.251"), ip("fd00::251")];
    let back = |client: &str| PathTest::Back {
        client: ip(client),
        gateways: vec![ip("10.0.0.251")],
        own: Some(ip("10.0.0.11")),
    };
    assert_eq!(of(&world), [back("198.51.100.1"), holds.clone()]);
    let role = world.roles.get_mut("web.shop.example").unwrap();
    role.clients = vec![ip("203.0.113.7"), ip("203.0.113.8")];
    assert_eq!(
        of(&world),
        [back("203.0.113.7"), back("203.0.113.8"), holds]
    );
    for director in world.directors.values_mut() {
        director.services[0].forward = ForwardMethod::Dr;
    }
    let quiet = PathTest::Holds {
        vip: ip("192.0.2.1"),
        quiet_at: Some(ip("10.0.0.11")),
    };
    assert_eq!(of(&world)[0], quiet);
}
