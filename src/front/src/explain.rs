//! `Manager.Explain`: a request by the name of its method and the options that policy looks at, as a question to the engine.

use cgrant_wire::{Act, CreateGrant, Explain, GrantId, Holder, Inquiry, RangeRequest};

use crate::{
    call::{MAX_NAME, MAX_WORD, NO_LIFETIME, NO_RANGE_TO_NEST},
    fault::Fault,
    mounts::source,
    network::{described, ports},
    object::{self, Object},
    options::{Descriptors, MAX_TEXT, Options, Pairs, Texts, printable},
};

/// The question that the arguments of `Explain` are.
///
/// # Errors
/// [`Fault::Argument`] with the option that is wrong.
pub fn question(method: &str, mut options: Options) -> Result<Explain, Fault> {
    let account = options.number("account")?;
    let groups = options.texts("groups")?.unwrap_or_default().0;
    let groups = groups.iter().map(|text| text.parse().map_err(|_| Fault::argument("groups", "not gids")));
    let groups = groups.collect::<Result<_, _>>()?;
    let application = options.text("application", MAX_NAME)?.unwrap_or_default();
    let question = about(method, &mut options)?;
    options.finish()?;
    Ok(Explain { question, account, groups, application })
}

fn about(method: &str, options: &mut Options) -> Result<Inquiry, Fault> {
    let act = match method {
        "CreateGrant" => return create(options).map(Inquiry::CreateGrant),
        "SetLimits" => {
            let Pairs(limits) = options.pairs("limits")?.unwrap_or_default();
            return Ok(Inquiry::SetLimits { grant: grant(options)?, limits });
        }
        "GetValues" => {
            let Texts(keys) = options.texts("keys")?.unwrap_or_default();
            return Ok(Inquiry::GetValues { grant: grant(options)?, keys });
        }
        "CreateCgroup" => {
            let path = options.text("path", MAX_TEXT)?.unwrap_or_default();
            return Ok(Inquiry::CreateCgroup { grant: grant(options)?, path });
        }
        "AddLink" => {
            let grant = grant(options)?;
            let [link] = <[_; 1]>::try_from(links(options)?)
                .map_err(|_| Fault::argument("links", "one link is added at a time"))?;
            return Ok(Inquiry::AddLink { grant, link });
        }
        "PublishPorts" => {
            let Texts(texts) = options.texts("ports")?.unwrap_or_default();
            let name = options.text("name", MAX_NAME)?;
            return Ok(Inquiry::PublishPorts { grant: grant(options)?, name, ports: ports(&texts)? });
        }
        "MapDirectory" => {
            options.flag("read-only")?;
            return Ok(Inquiry::MapDirectory { grant: grant(options)?, from: source(options)? });
        }
        "MakeDevice" => {
            let name = options.text("name", MAX_NAME)?.unwrap_or_default();
            return Ok(Inquiry::MakeDevice { grant: grant(options)?, name });
        }
        "AllowDevice" => {
            let name = options.text("name", MAX_NAME)?.unwrap_or_default();
            return Ok(Inquiry::AllowDevice { grant: grant(options)?, name });
        }
        "ForgetRange" => {
            return Ok(Inquiry::ForgetRange { name: options.text("name", MAX_NAME)?.unwrap_or_default() });
        }
        "ListGrants" => return Ok(Inquiry::ListGrants { all: options.flag("all")?.unwrap_or(false) }),
        "ListAccounts" => return Ok(Inquiry::ListAccounts { all: options.flag("all")?.unwrap_or(false) }),
        "ListRules" => return Ok(Inquiry::ListRules { all: options.flag("all")?.unwrap_or(false) }),
        "ListDeparted" => return Ok(Inquiry::ListDeparted),
        "GetUsage" => return Ok(Inquiry::UsageOf { account: options.number("of")? }),
        "Connect" => return Ok(Inquiry::Connect),
        "CGManager" => return Ok(Inquiry::Legacy),
        "Adopt" => match options.text("lifetime", MAX_WORD)?.as_deref() {
            Some("persistent") => Act::Persist,
            None | Some("connection" | "process") => Act::Adopt,
            Some(_) => return Err(Fault::argument("lifetime", NO_LIFETIME)),
        },
        "Stat" | "ListProcesses" | "ListCgroups" => Act::Read,
        "RemoveCgroup" | "OpenCgroup" => {
            let act = if method == "RemoveCgroup" { Act::RemoveCgroup } else { Act::OpenCgroup };
            let about = options.text("path", MAX_TEXT)?;
            return Ok(Inquiry::Use { grant: grant(options)?, act, about });
        }
        "RemoveLink" => return of_link(Act::RemoveLink, options),
        "UnpublishPorts" => {
            ports(&options.texts("ports")?.unwrap_or_default().0)?;
            return of_link(Act::Unpublish, options);
        }
        "Attach" => Act::Attach,
        "Freeze" => Act::Freeze,
        "Thaw" => Act::Thaw,
        "Kill" => Act::Kill,
        "Release" => Act::Release,
        _ => {
            return Err(Fault::argument("request", &format!("{} can't be explained", printable(method))));
        }
    };
    Ok(Inquiry::Use { grant: grant(options)?, act, about: None })
}

fn of_link(act: Act, options: &mut Options) -> Result<Inquiry, Fault> {
    let about = options.text("name", MAX_NAME)?;
    Ok(Inquiry::Use { grant: grant(options)?, act, about })
}

fn create(options: &mut Options) -> Result<CreateGrant, Fault> {
    let holder = match options.text("lifetime", MAX_WORD)?.as_deref() {
        Some("persistent") => Holder::Persistent,
        None | Some("connection" | "process") => Holder::Connection,
        Some(_) => return Err(Fault::argument("lifetime", NO_LIFETIME)),
    };
    let range = RangeRequest {
        count: options.number("range-count")?.unwrap_or(0),
        named: options.flag("range-named")?.unwrap_or(true),
        setgroups: options.flag("setgroups")?.unwrap_or(true),
        own_ids: false,
    };
    let range = (!options.flag("no-range")?.unwrap_or(false)).then_some(range);
    let nesting = options.number("nesting")?.unwrap_or(0);
    if range.is_none() && nesting > 0 {
        return Err(Fault::argument("nesting", NO_RANGE_TO_NEST));
    }
    Ok(CreateGrant {
        name: options.text("name", MAX_NAME)?.unwrap_or_default(),
        key: String::new(),
        holder,
        range,
        range_name: options.text("range-name", MAX_NAME)?.unwrap_or_default(),
        userns: None,
        stage: None,
        limits: options.pairs("limits")?.unwrap_or_default().0,
        pressure: options.texts("pressure")?.unwrap_or_default().0,
        links: links(options)?,
        nesting,
        tidies: options.flag("tidies")?.unwrap_or(false),
    })
}

/// Links without their namespaces.
fn links(options: &mut Options) -> Result<Vec<cgrant_wire::LinkRequest>, Fault> {
    let described = |link| match described(link, &mut Descriptors::default())? {
        request if request.netns.is_none() => Ok(request),
        _ => Err(Fault::argument("netns", "no descriptors are needed to explain")),
    };
    options.links("links")?.unwrap_or_default().0.into_iter().map(described).collect()
}

/// The grant by its object's path.
fn grant(options: &mut Options) -> Result<GrantId, Fault> {
    let path = options.text("grant", MAX_NAME)?.unwrap_or_default();
    match object::find(&path, true) {
        Some(Object::Grant(grant)) => Ok(grant),
        _ => Err(Fault::argument("grant", "not the path of a grant's object")),
    }
}
