//! How long who waits for whom about links, from the outside in: each wait is longer than all that are within it.
//!
//! So nobody is given up who has only waited for somebody else in order, and what is slow is told by the one who knows it.

use std::time::Duration;

/// The engine, for a sign of a helper that has orders: then it hangs, and is killed. Whatever the helper does, in an
/// order or by itself, takes less.
pub const ORDER: Duration = Duration::from_secs(20);
/// The helper, for all runs of `nft` of one order together. A run takes milliseconds, with a thousand links a second or two.
pub const NFT: Duration = Duration::from_secs(8);
/// The same, to undo what an order did before it failed.
pub const NFT_UNDO: Duration = Duration::from_secs(4);
/// The helper, for a name server's process that is made ready.
pub const NAME_SERVER: Duration = Duration::from_secs(5);
/// The helper, for the child that tries what the kernel can, which runs `nft` too.
pub const EXAMINE: Duration = Duration::from_secs(6);

/// The engine, until a helper that was told all that ought to be has brought it about. Orders are not given before.
pub const RESTORE: Duration = Duration::from_secs(120);
/// The helper, for all runs of `nft` of that.
pub const NFT_RESTORE: Duration = Duration::from_secs(60);

/// An order, for a helper that is just being started.
pub const STARTING: Duration = Duration::from_secs(3);
/// The supervisor, for the end of a process that it killed: then it hangs in the kernel, and nobody can help it.
pub const KILLED: Duration = Duration::from_secs(5);

const fn within(inner: &[Duration], outer: Duration) -> bool {
    let (mut sum, mut rest) = (0, inner);
    while let [first, others @ ..] = rest {
        sum += first.as_millis();
        rest = others;
    }
    sum < outer.as_millis()
}

const _: () = assert!(within(&[NFT, NFT_UNDO, NAME_SERVER], ORDER));
const _: () = assert!(within(&[EXAMINE, NFT], ORDER));
const _: () = assert!(within(&[NFT_RESTORE, NAME_SERVER], RESTORE));
