//! How servers get their operating system: `driver` of a server, `[[image]]`s of `roles.toml`.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use toml::Spanned;

use super::{
    table::{Entry, Sections},
    values::{Seen, host_keys, limit, name, operating_system, pin},
};
use crate::{
    config::Diagnostics,
    model::machine::{Boot, BootMode, Door, Driver, HttpDriver, Image, Login, Redfish, Url},
};

/// What an `[[image]]` may have.
pub(super) const IMAGE: [&str; 5] = ["os", "boot", "image", "timeout", "enrolment_keys"];

/// What most installations end in.
const USUAL_TIMEOUT: Duration = Duration::from_mins(60);

/// Reads a server's `driver`; none where it has mistakes.
pub(super) fn driver(d: &mut Diagnostics, server: &Entry<'_>) -> Option<Driver> {
    let example = "as in driver = { kind = \"redfish\", url = \"https://bmc7.example\", system = \
                   \"/redfish/v1/Systems/1\", credential = \"bmc\" }";
    if !server.has("driver") {
        return Some(Driver::Ready);
    }
    let entry = server.table(d, "driver", example)?;
    let kind = entry.required(d, "kind")?;
    let door = ["kind", "url", "credential", "pin_sha256"];
    match kind.get_ref().as_str() {
        "ready" => {
            entry.only(d, "a driver of kind \"ready\"", &["kind"]);
            Some(Driver::Ready)
        }
        "redfish" => {
            let own = ["system", "media", "login", "boot_mode"];
            entry.only(
                d,
                "a driver of kind \"redfish\"",
                &[&door[..], &own].concat(),
            );
            let redfish = redfish(d, &entry)?;
            Some(Driver::Redfish(Box::new(redfish)))
        }
        "http" => {
            let own = ["machine"];
            entry.only(d, "a driver of kind \"http\"", &[&door[..], &own].concat());
            let machine = entry.required(d, "machine");
            let (door, _) = self::door(d, &entry, false)?;
            let machine = machine?.into_inner();
            Some(Driver::Http(Box::new(HttpDriver { door, machine })))
        }
        other => {
            let message = format!("no driver is of kind {other:?}: ready, redfish or http");
            d.push(kind.span(), message);
            None
        }
    }
}

fn redfish(d: &mut Diagnostics, entry: &Entry<'_>) -> Option<Redfish> {
    let door = door(d, entry, true).filter(|(door, at)| {
        let bare = door.url.base.is_empty();
        if !bare {
            let message =
                "the url of a controller ends with its host or port: the path is `system`";
            d.push(at.clone(), message);
        }
        bare
    });
    let system = entry.required(d, "system");
    let media = entry.text(d, "media");
    for path in system.iter().chain(&media) {
        let text = path.get_ref();
        let plain = |c: char| c.is_ascii_graphic() && !"?#\"<>\\^`{|}".contains(c);
        if !text.starts_with("/redfish/") || !text.chars().all(plain) {
            let message = "a path of the controller, as in \"/redfish/v1/Systems/1\": GET \
                           /redfish/v1/Systems names them";
            d.push(path.span(), message);
        }
    }
    let login = entry.word(
        d,
        "login",
        &[("basic", Login::Basic), ("session", Login::Session)],
    );
    let boot_mode = entry.word(
        d,
        "boot_mode",
        &[("uefi", BootMode::Uefi), ("legacy", BootMode::Legacy)],
    );
    Some(Redfish {
        door: door?.0,
        system: system?.into_inner(),
        media: media.map(Spanned::into_inner),
        login: login.unwrap_or_default(),
        boot_mode,
    })
}

fn door(d: &mut Diagnostics, entry: &Entry<'_>, secure: bool) -> Option<(Door, Range<usize>)> {
    let url = entry.required(d, "url");
    let credential = entry.required(d, "credential");
    let pin = entry.text(d, "pin_sha256").and_then(|text| pin(d, &text));
    if let Some(credential) = &credential {
        name(d, "a credential's name", credential);
    }
    let url = url.and_then(|text| match text.get_ref().parse::<Url>() {
        Ok(url) => Some((url, text.span())),
        Err(e) => {
            d.push(text.span(), e.to_string());
            None
        }
    });
    let (url, at) = url?;
    if !url.secure && (secure || pin.is_some()) {
        let at = at.clone();
        let message = if secure {
            "a controller is asked over https:// alone"
        } else {
            "pin_sha256 belongs to a url that begins with https://"
        };
        d.push(at, message);
    }
    let door = Door {
        url,
        pin,
        credential: credential?.into_inner(),
    };
    Some((door, at))
}

/// Reads the `[[image]]`s.
pub(super) fn images(d: &mut Diagnostics, sections: &Sections<'_>) -> BTreeMap<String, Image> {
    let mut all = BTreeMap::new();
    let mut systems = Seen::default();
    for e in &sections.entries {
        let os = e.required(d, "os");
        let boot = e.required(d, "boot");
        let url = e.text(d, "image");
        let timeout = e.text(d, "timeout");
        let keys = e.texts(d, "enrolment_keys");
        if let Some(os) = &os {
            operating_system(d, os);
            systems.once(d, "image of", os.get_ref().clone(), os.span());
        }
        if let Some(url) = &url {
            let text = url.get_ref();
            let http = text.starts_with("http://") || text.starts_with("https://");
            if !http || !text.chars().all(|c| c.is_ascii_graphic()) {
                let message = "`image` is a URL that the controllers can fetch, as in \
                               \"https://images.example/debian-12.iso\"";
                d.push(url.span(), message);
            }
        }
        let boot = boot.and_then(|word| match (word.get_ref().as_str(), &url) {
            ("pxe", None) => Some(Boot::Pxe),
            ("pxe", Some(url)) => {
                let message = "a PXE server has its own image: leave `image` out";
                d.push(url.span(), message);
                None
            }
            ("virtual_media", Some(url)) => Some(Boot::VirtualMedia(url.get_ref().clone())),
            ("virtual_media", None) => {
                d.push(e.span(), "`image` is missing here: the URL of the image");
                None
            }
            _ => {
                d.push(word.span(), "`boot` is \"pxe\" or \"virtual_media\"");
                None
            }
        });
        host_keys(d, &keys);
        let timeout = match &timeout {
            None => Some(USUAL_TIMEOUT),
            Some(text) => limit(d, text),
        };
        if let (Some(os), Some(boot), Some(timeout)) = (os, boot, timeout) {
            let os = os.into_inner();
            let image = Image {
                os: os.clone(),
                boot,
                timeout,
                enrolment_keys: keys.into_iter().map(Spanned::into_inner).collect(),
            };
            all.insert(os, image);
        }
    }
    all
}
