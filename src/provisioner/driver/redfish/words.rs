//! A controller's documents to values and requests to documents. PURE. Read leniently: what this needs
//! of them is little, and vendors differ in the rest.

use serde::Deserialize;
use serde_json::{Value, json};

use super::decide::{Media, Power, Reading, Request};
use crate::model::machine::{Boot, BootMode};

/// What is used of a ComputerSystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct System {
    /// `On`, `Off`, `PoweringOn`, …
    #[serde(rename = "PowerState")]
    pub power: Option<String>,
    /// Its boot settings.
    #[serde(rename = "Boot")]
    pub boot: BootSettings,
    /// What it can be told to do.
    #[serde(rename = "Actions")]
    actions: SystemActions,
    /// Its virtual drives, of newer controllers.
    #[serde(rename = "VirtualMedia")]
    media: Option<Link>,
    #[serde(rename = "Links")]
    links: SystemLinks,
    /// For `If-Match`, where no header says it.
    #[serde(rename = "@odata.etag")]
    pub etag: Option<String>,
}

/// `Boot` of a ComputerSystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BootSettings {
    #[serde(rename = "BootSourceOverrideTarget")]
    target: Option<String>,
    #[serde(rename = "BootSourceOverrideEnabled")]
    enabled: Option<String>,
    #[serde(rename = "BootSourceOverrideTarget@Redfish.AllowableValues")]
    targets: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct SystemActions {
    #[serde(rename = "#ComputerSystem.Reset")]
    reset: Action,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Action {
    target: Option<String>,
    #[serde(rename = "ResetType@Redfish.AllowableValues")]
    resets: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct SystemLinks {
    #[serde(rename = "ManagedBy")]
    managers: Vec<Link>,
}

/// A reference to another resource.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// Its path.
    #[serde(rename = "@odata.id")]
    pub id: String,
}

/// A collection's or a manager's references.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Links {
    /// Of a collection.
    #[serde(rename = "Members")]
    pub members: Vec<Link>,
    /// Of a manager.
    #[serde(rename = "VirtualMedia")]
    pub media: Option<Link>,
}

/// What is used of a VirtualMedia.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Drive {
    #[serde(rename = "MediaTypes")]
    types: Vec<String>,
    #[serde(rename = "Inserted")]
    inserted: Option<bool>,
    #[serde(rename = "Image")]
    image: Option<String>,
    #[serde(rename = "Actions")]
    actions: DriveActions,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct DriveActions {
    #[serde(rename = "#VirtualMedia.InsertMedia")]
    insert: Action,
    #[serde(rename = "#VirtualMedia.EjectMedia")]
    eject: Action,
}

impl Drive {
    /// Whether it can hold the image of a CD.
    #[must_use]
    pub fn is_cd(&self) -> bool {
        self.types.iter().any(|t| t == "CD" || t == "DVD")
    }

    fn media(&self) -> Media {
        let image = self.image.clone().filter(|i| !i.is_empty());
        Media {
            // Old controllers do not say: then the image's name does.
            inserted: self.inserted.unwrap_or(image.is_some()),
            image,
        }
    }
}

/// Where the virtual drives are listed: with the system, or with its manager.
#[must_use]
pub fn drives_of(system: &System) -> (Option<&str>, Option<&str>) {
    (
        system.media.as_ref().map(|l| l.id.as_str()),
        system.links.managers.first().map(|l| l.id.as_str()),
    )
}

/// What was read.
#[must_use]
pub fn reading(system: &System, drive: Option<&Drive>) -> Reading {
    let power = match system.power.as_deref() {
        Some("On") => Power::On,
        Some("Off") => Power::Off,
        _ => Power::Changing,
    };
    let in_force = !matches!(system.boot.enabled.as_deref(), None | Some("Disabled"));
    Reading {
        power,
        boots_from: system.boot.target.clone().filter(|_| in_force),
        lasting: system.boot.enabled.as_deref() == Some("Continuous"),
        media: drive.map(Drive::media),
    }
}

/// A request as HTTP has it: method PATCH where the body changes the resource itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// PATCH, else POST.
    pub patch: bool,
    /// Where.
    pub path: String,
    /// What.
    pub body: Value,
    /// What to try where that is refused: some know fewer properties.
    pub instead: Option<Value>,
}

/// How a request is put to this controller.
#[must_use]
pub fn change(
    request: Request,
    boot: &Boot,
    mode: Option<BootMode>,
    (system_path, system): (&str, &System),
    drive: Option<(&str, &Drive)>,
) -> Option<Change> {
    let post = |path: String, body| Change {
        patch: false,
        path,
        body,
        instead: None,
    };
    let reset = |usual: &str, other: &str| {
        let action = &system.actions.reset;
        let has = |kind: &str| action.resets.iter().any(|r| r == kind);
        let kind = if !has(usual) && has(other) {
            other
        } else {
            usual
        };
        let path = action
            .target
            .clone()
            .unwrap_or_else(|| format!("{system_path}/Actions/ComputerSystem.Reset"));
        post(path, json!({ "ResetType": kind }))
    };
    let overridden = |target: &str, enabled: &str| {
        let mut boot = json!({
            "BootSourceOverrideTarget": target,
            "BootSourceOverrideEnabled": enabled,
        });
        if let (Some(mode), Some(settings)) = (mode, boot.as_object_mut()) {
            settings.insert("BootSourceOverrideMode".into(), mode.as_str().into());
        }
        Change {
            patch: true,
            path: system_path.to_owned(),
            body: json!({ "Boot": boot }),
            instead: None,
        }
    };
    let (drive_path, drive) = drive.unzip();
    let action = |action: fn(&DriveActions) -> &Action, name: &str| {
        let told = drive.and_then(|d| action(&d.actions).target.clone());
        let usual = drive_path.map(|p| format!("{p}/Actions/VirtualMedia.{name}"));
        told.or(usual)
    };
    Some(match request {
        Request::PowerOff => reset("ForceOff", "PushPowerButton"),
        Request::PowerOn => reset("On", "ForceOn"),
        Request::Override => match boot {
            Boot::Pxe => overridden("Pxe", "Once"),
            Boot::VirtualMedia(_) => {
                let targets = &system.boot.targets;
                let has = |t: &str| targets.iter().any(|have| have == t);
                let usb = !has("Cd") && has("UsbCd");
                overridden(if usb { "UsbCd" } else { "Cd" }, "Once")
            }
        },
        Request::ClearOverride => overridden("None", "Disabled"),
        Request::Insert => Change {
            instead: Some(json!({ "Image": boot.image()? })),
            ..post(
                action(|a| &a.insert, "InsertMedia")?,
                json!({ "Image": boot.image()?, "Inserted": true, "WriteProtected": true }),
            )
        },
        Request::Eject => post(action(|a| &a.eject, "EjectMedia")?, json!({})),
    })
}

/// What an error's body says, one line.
#[must_use]
pub fn complaint(body: &[u8]) -> String {
    let found: Option<String> = serde_json::from_slice::<Value>(body).ok().and_then(|v| {
        let error = v.get("error")?;
        let extended = error
            .get("@Message.ExtendedInfo")
            .and_then(|all| all.get(0))
            .and_then(|first| first.get("Message"));
        let text = extended.or_else(|| error.get("message"))?.as_str()?;
        Some(text.to_owned())
    });
    let text = found.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(300).collect()
}

#[cfg(test)]
mod tests;
