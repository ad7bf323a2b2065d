//! Credentials of a container's, as they are written down, and what they say at a start.

use std::{fs::File, io::Read, path::Path};

use crate::{
    args::{Content, Credential},
    error::Failure,
};

/// Longest one, in bytes, as the container's systemd bounds it.
const MAX: u64 = 1024 * 1024;

/// The same wherever the container is started from.
pub(super) fn absolute(credential: &Credential) -> Result<Credential, Failure> {
    let Content::File(file) = &credential.content else { return Ok(credential.clone()) };
    let path = std::path::absolute(file)
        .map_err(|source| Failure::Machine { doing: "find the file of a credential", source })?;
    let text = path.to_str().ok_or_else(|| Failure::Usage(format!("{path:?} is no UTF-8")))?;
    Ok(Credential { content: Content::File(text.to_owned()), ..credential.clone() })
}

/// Name and content.
pub(super) fn read(credential: &Credential) -> Result<(String, Vec<u8>), Failure> {
    let content = match &credential.content {
        Content::Text(text) => text.clone().into_bytes(),
        Content::File(file) => {
            let mut bytes = Vec::new();
            // What is too long is refused as such where all credentials are checked.
            let read =
                File::open(Path::new(file)).and_then(|file| file.take(MAX + 1).read_to_end(&mut bytes));
            read.map_err(|error| {
                Failure::Usage(format!("cannot read {file:?}, the credential {:?}: {error}", credential.name))
            })?;
            bytes
        }
    };
    Ok((credential.name.clone(), content))
}
