//! Roles: released, and held against a server.

use std::{net::IpAddr, time::Duration};

use axum::{Extension, Json, extract::State, http::StatusCode};
use tokio::time::timeout;
use tracing::info;

use super::{
    Shared, actor, operator,
    problem::{Path, Refusal},
};
use crate::{
    http::Caller,
    model::{
        inventory::Role,
        wire::{PlannedStep, RoleDifference, RoleLook},
    },
    provisioner::{
        order::{PathTest, RenderedFile, Step},
        plan::{Source, World, install_step, steps},
        sealed::{Masks, Values, placeholder},
        step::Wanted,
    },
    telemetry::Chain,
};

/// The whole look at a server.
const LOOK: Duration = Duration::from_secs(60);

pub(super) async fn release(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(code): Path<String>,
) -> Result<StatusCode, Refusal> {
    operator(&caller)?;
    let store = &shared.app.store;
    if !store.release_role(&code, actor(&caller)).await? {
        return Err(no_role(&code));
    }
    info!(role = code, %caller, "role released");
    Ok(StatusCode::NO_CONTENT)
}

fn no_role(code: &str) -> Refusal {
    let detail = format!("the inventory has no role {code}");
    Refusal::new(StatusCode::NOT_FOUND, "no_such_role", detail)
}

/// What a role would do to a server, or did; and how the server differs from it. Changes nothing.
pub(super) async fn look(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((code, name)): Path<(String, String)>,
) -> Result<Json<RoleLook>, Refusal> {
    operator(&caller)?;
    let world = shared.app.store.world().await?;
    let role = world.roles.get(&code).ok_or_else(|| no_role(&code))?;
    let server = world.servers.get(&name).map(|s| s.server.clone());
    let server = server.ok_or_else(|| {
        let detail = format!("the inventory has no server {name}");
        Refusal::new(StatusCode::NOT_FOUND, "no_such_server", detail)
    })?;
    let brief = match place(&shared, &world, role, &server.addresses).await? {
        Some((at, origins)) => {
            let services = world.services_with(&world.places(&origins));
            world.brief_of(role, at, Some(&name), services)
        }
        None => world.brief_beforehand(role),
    };
    let brief =
        brief.map_err(|miss| Refusal::new(StatusCode::CONFLICT, miss.code(), miss.to_string()))?;
    let after = steps(&brief, &server, "plan")
        .map_err(|e| Refusal::new(StatusCode::CONFLICT, "template_error", e.line()))?;
    let pool = world.pool();
    let own = pool.iter().find(|c| c.name == name);
    let steps: Vec<Step> = install_step(own, &brief, "plan")
        .into_iter()
        .chain(after)
        .collect();
    let mut answer = RoleLook {
        role: code,
        server: name,
        steps: steps.iter().map(planned).collect(),
        unread: None,
        differences: Vec::new(),
    };
    let names = steps
        .iter()
        .flat_map(Step::secrets)
        .map(|s| s.name.as_str());
    let values = match shared.app.secrets.read(names) {
        Ok(values) => values,
        Err(e) => {
            answer.unread = Some(format!("secret_missing: {}", Chain(&e)));
            return Ok(Json(answer));
        }
    };
    let mut wanted = wanted(role, &steps, &values);
    // Any file of it may have been given any of them.
    let mut named = shared.app.secrets.known(world.secret_names());
    named.extend(values);
    wanted.masks = Masks::of(&named);
    match timeout(LOOK, shared.app.look.look(&server, &wanted)).await {
        Ok(Ok(found)) => {
            let difference = |d: crate::provisioner::step::Difference| RoleDifference {
                object: d.object,
                detail: d.detail,
                diff: d.diff,
            };
            answer.differences = found.into_iter().map(difference).collect();
        }
        Ok(Err(e)) => answer.unread = Some(e.to_string()),
        Err(_elapsed) => answer.unread = Some(format!("not read within {LOOK:?}")),
    }
    Ok(Json(answer))
}

/// The place that a server has in the role, where it has one: whose it was, where another one failed in it, and all
/// addresses of the configured server.
async fn place(
    shared: &Shared,
    world: &World,
    role: &Role,
    addresses: &[IpAddr],
) -> Result<Option<(Option<IpAddr>, Vec<IpAddr>)>, Refusal> {
    for address in addresses {
        let held = world.assignments.get(address);
        let Some(held) = held.filter(|h| h.role == role.code && h.passed_on.is_none()) else {
            continue;
        };
        let place = match &held.source {
            Source::Replacement(id) => {
                let (failed, origins) = shared.app.store.origins(id).await?;
                (Some(failed), origins)
            }
            Source::Files => (Some(*address), world.addresses_of(*address)),
        };
        return Ok(Some(place));
    }
    Ok(None)
}

fn wanted(role: &Role, steps: &[Step], values: &Values) -> Wanted {
    let mut files: Vec<RenderedFile> = Vec::new();
    let mut installed = Vec::new();
    for step in steps {
        match step {
            Step::Configure { files: some, .. } => files.extend(some.iter().cloned()),
            Step::Test {
                installed: some, ..
            } => installed.extend(some.iter().cloned()),
            Step::Look
            | Step::OsInstall { .. }
            | Step::Fence
            | Step::Os { .. }
            | Step::Install { .. }
            | Step::Clean { .. } => {}
        }
    }
    files.iter_mut().for_each(|f| f.reveal(values));
    Wanted {
        os: role.os.clone(),
        installed,
        files,
        masks: Masks::of(values),
    }
}

/// A step for people: what would be run, asked and placed; secrets by name.
fn planned(step: &Step) -> PlannedStep {
    let mut text = String::new();
    let mut say = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    match step {
        Step::Look | Step::Fence | Step::Clean { .. } => {}
        Step::OsInstall { image, .. } => say(&format!(
            "its disk is wiped, and {} installed within {:?}",
            image.os, image.timeout
        )),
        Step::Os { wanted } => say(&format!("is it {wanted}?")),
        Step::Install {
            script,
            variables,
            check,
            secrets,
            ..
        } => {
            for (name, value) in variables {
                say(&format!("{name}={value}"));
            }
            for secret in secrets {
                say(&format!("{}={}", secret.name, placeholder(&secret.name)));
            }
            say(script.trim_end());
            if let Some(check) = check {
                say(&format!("then check: {check}"));
            }
        }
        Step::Configure {
            files,
            running,
            start,
            reload,
            ..
        } => {
            for file in files {
                say(&format!(
                    "{} {:04o} {}:{}",
                    file.path, file.mode, file.owner, file.group
                ));
                if let Some(validate) = &file.validate {
                    say(&format!("  validate: {validate}"));
                }
                for line in String::from_utf8_lossy(&file.body).lines() {
                    say(&format!("  | {line}"));
                }
            }
            let named = [("running", running), ("start", start), ("reload", reload)];
            for (word, command) in named {
                if let Some(command) = command {
                    say(&format!("{word}: {command}"));
                }
            }
        }
        Step::Test { answers, paths, .. } => {
            say("everything is read back");
            for test in answers {
                say(&format!("does {} answer within {:?}?", test.at, test.limit));
            }
            for path in paths {
                say(&match path {
                    PathTest::Back {
                        client, gateways, ..
                    } => {
                        let all: Vec<_> = gateways.iter().map(ToString::to_string).collect();
                        let all = all.join(" or ");
                        format!("does its way to {client} lead through {all}?")
                    }
                    PathTest::Holds { vip, quiet_at } => match quiet_at {
                        Some(own) => {
                            format!("has it {vip}, unseen by the neighbours at the link of {own}?")
                        }
                        None => format!("has it {vip}?"),
                    },
                });
            }
        }
    }
    PlannedStep {
        step: step.name(),
        limit_ms: u64::try_from(step.limit().as_millis()).unwrap_or(u64::MAX),
        text,
    }
}
