//! Why a range can't be had, and what the caller is told.

use std::io;

use cgrant_policy::{GrantName, IdSpan};
use cgrant_wire::{GrantId, Refusal, RefusalCode};

/// What makes room. Nobody but the account knows which files its ids have, so no range is taken from its name without its word.
const UNTIE: &str = "untie ranges of names that are not needed (`cgrant range list` shows them, \
                     `cgrant range forget NAME` unties one)";

/// Why the record of ranges did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum IdError {
    /// A file of the record, or of `/etc`, can't be read or written. Nothing has changed.
    #[error("{file}: {source}")]
    Io {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file of the record is not what this program writes. What it stood for is not given out again.
    #[error("the record of ranges {file} is damaged: {reason}")]
    Damaged {
        /// Which.
        file: String,
        /// In what way.
        reason: String,
    },
    /// The account would have more ids than it may.
    #[error("the account has {used} of at most {quota} ids and asks for {count} more")]
    Quota {
        /// How many it may have.
        quota: u64,
        /// How many it has.
        used: u64,
        /// How many more are asked for.
        count: u32,
    },
    /// What the account has is full of small pieces, and it may not have another block.
    #[error("the account's {blocks} blocks of 65536 ids have no room for {count} ids in one piece")]
    Fragmented {
        /// How many blocks it has.
        blocks: u64,
        /// How many ids are asked for.
        count: u32,
        /// How many ids it may have.
        quota: u64,
        /// How many it has.
        used: u64,
    },
    /// The pool has nothing left in one piece.
    #[error(
        "the pool has no {count} free ids in one piece: of its {blocks} blocks of 65536, {free} are free"
    )]
    NoFreeBlock {
        /// How many are asked for.
        count: u32,
        /// Blocks of the pool.
        blocks: usize,
        /// Blocks that belong to nobody.
        free: usize,
    },
    /// The name has a range of another size.
    #[error("the range of the name {name} has {has} ids, not {asked}")]
    SizeDiffers {
        /// The name.
        name: GrantName,
        /// Its size.
        has: u32,
        /// What was asked for.
        asked: u32,
    },
    /// The name's range is mapped by a live grant.
    #[error("the range of the name {name} is in use by the grant {grant}")]
    InUse {
        /// The name.
        name: GrantName,
        /// By which grant.
        grant: GrantId,
    },
    /// Ids of the range have become somebody else's by `/etc/subuid` or the like.
    #[error("the ids {0} of the range are now given to somebody by /etc/passwd, group, subuid or subgid")]
    Taken(IdSpan),
    /// The grant has no room for grants inside it.
    #[error("of the ids that the container has for others inside it, no {count} in one piece are free")]
    NoRoomInside {
        /// How many are asked for.
        count: u32,
    },
    /// An ordinary user asks for a part of a range that goes with its grant: what the user had could not be kept from others then.
    #[error("the container around has ids without a name, of which its ordinary users are given none")]
    NothingKept,
    /// The account has no range of the name.
    #[error("the account has no range of the name {0}")]
    NoSuchRange(GrantName),
    /// Nobody could say whether ids are in use.
    #[error("the name service did not say whether the ids are in use: {0}")]
    Names(#[from] NamesError),
}

/// Why the name service did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// It took too long.
    #[error("no answer in time")]
    TimedOut,
    /// It could not be asked.
    #[error("it could not be asked: {0}")]
    Failed(String),
}

impl IdError {
    pub(crate) fn io(file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { file, source }
    }
}

impl From<IdError> for Refusal {
    fn from(error: IdError) -> Self {
        let message = error.to_string();
        let of = |code| Self::new(code, message.clone());
        match error {
            IdError::Io { .. } => of(RefusalCode::RecordUnwritable)
                .hint("the administrator should look whether the disk of the record is full or read-only"),
            IdError::Damaged { .. } => of(RefusalCode::Internal)
                .hint("the administrator should restore the file from a backup, or remove it if nothing of the account runs or is stored"),
            IdError::Quota { quota, used, .. } => of(RefusalCode::QuotaExceeded)
                .figures(quota, used)
                .hint(format!("{UNTIE}, release grants, or ask for fewer ids")),
            IdError::Fragmented { quota, used, .. } => of(RefusalCode::QuotaExceeded)
                .figures(quota, used)
                .hint(format!("{UNTIE}, so that larger pieces come free")),
            IdError::NoFreeBlock { .. } => of(RefusalCode::NoFreeRange)
                .hint(
                "the administrator can add ranges to `pool` under [ids] in cgrantd.toml; what accounts, subordinate ranges, the name service and systemd (524288-1879048191) use is left out of it",
            ),
            IdError::SizeDiffers { has, .. } => of(RefusalCode::InvalidArgument)
                .hint(format!("ask for {has} ids, or untie the range from the name first")),
            IdError::InUse { .. } => {
                of(RefusalCode::Busy).hint("release that grant, or ask for a range without a name")
            }
            IdError::Taken(_) => of(RefusalCode::NoFreeRange)
                .hint("the administrator should move the entry, or the name's range must be untied"),
            IdError::NoRoomInside { .. } => of(RefusalCode::NoFreeRange).hint(
                "end grants or untie ranges of names that are not needed, or make the container anew with more blocks for nesting",
            ),
            IdError::NothingKept => of(RefusalCode::Unsupported)
                .hint("make the container around with a range that has a name, as `cgrant launch` does"),
            IdError::NoSuchRange(_) => of(RefusalCode::InvalidArgument).hint("ListRanges shows the ranges and their names"),
            IdError::Names(NamesError::TimedOut) => {
                of(RefusalCode::TimedOut).hint("try again once the host's name service (NSS) answers")
            }
            IdError::Names(NamesError::Failed(_)) => of(RefusalCode::Internal).hint("the broker's log has the details"),
        }
    }
}
