//! What CGManager answers, as a table: each line a call in a situation, and the answer that its contract has for it. Every
//! line is tried twice, as a plain call and as its Scm twin with the same requestor, whose bytes mean the same.
//!
//! A scene begins with cgroups of its own in every hierarchy (of cgroup2 alone where that is all): `J`, root's, and
//! `J/home`, which root gave to alice. The process of `root` is in `J`, those of `alice` and `bob` in `J/home`.
//!
//! ```text
//! WHO METHOD ARGUMENT… => ANSWER | ANSWER OF THE TWIN, if it is another one
//! ```
//!
//! Where CGManager itself answers otherwise, and what it does is not to be kept, that stands behind the right answer, with the reason:
//!
//! ```text
//! WHO METHOD ARGUMENT… => ANSWER | OF THE TWIN ! CGMANAGER'S | OF THE TWIN (WHY, or the number of the weakness in its contract)
//! ```
//!
//! `WHO<GATE` asks by an Scm call on a connection of GATE's. Before that a line may say where it holds: `v1`, `v2`, `plain`,
//! `scm`, `ours` (of the broker, not of CGManager). `$J` is the path of `J`, `$NAME` a uid, `@NAME` a pid,
//! `$DISK` the number of a disk; `~` in an argument is a blank. `refused` may have words behind it that a plain call is to be told. Other lines set a scene and look at the kernel:
//!
//! ```text
//! make CGROUP                     an empty one, root's, in every hierarchy
//! give CONTROLLER CGROUP NAME     as root gives one away: directory, tasks and cgroup.procs
//! at NAME CGROUP                  a process is put there in every hierarchy that has it
//! task NAME OWNER CGROUP          a new process
//! end NAME                        it is killed
//! in NAME CONTROLLER CGROUP       it is there
//! owner NAME CONTROLLER FILE      whose a file or directory is
//! there CONTROLLER CGROUP         a cgroup is there
//! gone CONTROLLER CGROUP          it is not, or soon is not
//! has CONTROLLER FILE VALUE       what the kernel has in a file
//! restart                         the broker ends, and another one goes on
//! ```
//!
//! With the program of CGManager 0.42, on a hybrid host, the same table is tried on that (`CONTRIBUTING.md`):
//!
//! ```text
//! CGRANT_TEST_ORIGINAL=…/cgmanager cargo test -p cgrant --features fault-injection --test integration -- cgmanager_table
//! ```
//!
//! It has the controllers `memory` and `freezer` only, so as to have nothing else of the machine's in its hands, and has mounted
//! neither: it sets no release agent, and nothing goes when it is empty.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::Path,
};

use crate::common::{
    Kind, Lab, Process, User,
    cgmanager::{Argument, Credential, Failure, Jail, Manager, Peer, Scm},
    original::Original,
    wait_until,
};

/// Names the program of the original, to be tried in the broker's place.
const ORIGINAL: &str = "CGRANT_TEST_ORIGINAL";
/// The controllers that it gets.
const THEIRS: [&str; 2] = ["memory", "freezer"];

/// Controllers: contract 2.3.
const CONTROLLERS: &str = r#"
plain root ListControllers                       => controllers ! names freezer memory (it has no others)
root  Create memory,freezer x                    => new
root  Create memory,freezer x                    => existed
root  Create freezer,memory,freezer y            => new ! existed (it made it twice, against its own rule)
there freezer y
there memory y
root  Create nothing z                           => refused
root  Create "" z                                => refused
root  Create nothing ""                          => new
# Empty names in a list are none.
root  Create memory, z                           => new
root  Create ,memory z                           => existed
root  Create memory,,freezer z                   => existed
root  GetValue memory, z cgroup.procs            => text ""
root  Create , zz                                => refused ! new (nothing was to be done, so it was done)
v1 root GetValue memory,freezer "" tasks         => refused
v2 root GetValue memory,freezer "" tasks         => text @root
root  GetValue nothing "" tasks                  => refused
root  GetTasks all ""                            => refused
ours root Create systemd s                       => new
ours there name=systemd s
root  Create all a/b                             => new
there memory a/b
ours there pids a/b
root  Create all a/b                             => existed
root  Remove all a 1                             => removed
gone memory a
root  Remove all a 1                             => absent ! removed (it was, whatever was there)
# All are tried, and one that fails is the answer.
ours v1 root MovePid all x @root                 => refused
ours v1 in root memory x
ours v1 in root freezer x
at root ""
root  MovePid memory,freezer x @root             => ok
in root memory x
in root freezer x
at root ""
v1 root Create memory only                       => new
v1 root MovePid freezer,memory only @root        => refused
v1 in root memory only
v1 at root ""
# Others end with the first that fails.
v1 root Chown memory,freezer only $bob $bob      => refused
v1 owner bob memory only
v1 root Chmod memory,freezer only "" 700         => refused
v1 root RemoveOnEmpty memory,freezer only        => refused
v1 root GetTasksRecursive memory,freezer only    => tasks
v1 root Prune memory,freezer only                => ok
v1 gone memory only
v1 root Create memory only                       => new
v1 root Remove freezer,memory only 1             => removed
v1 gone memory only
# One hierarchy only.
v1 root ListChildren memory,freezer ""           => refused
v1 root ListKeys memory,freezer ""               => refused
v1 root GetTasks memory,freezer ""               => refused
v1 root GetPidCgroup memory,freezer @root        => refused
v1 root SetValue memory,freezer z memory.limit_in_bytes 40960000 => refused
root  ListChildren all ""                        => refused
root  ListKeys all ""                            => refused
root  GetPidCgroup all @root                     => refused
root  GetPidCgroupAbs all @root                  => refused
# Controllers that nobody knows, alone and in a list.
root  GetTasksRecursive nothing z                => refused
root  ListChildren nothing z                     => refused
root  ListKeys nothing z                         => refused
root  SetValue nothing z memory.limit_in_bytes 40960000 => refused
root  GetPidCgroup nothing @root                 => refused
root  MovePid nothing z @root                    => refused
root  MovePidAbs nothing $J/z @root              => refused
root  Chown nothing z 0 0                        => refused
root  Chmod nothing z "" 755                     => refused
root  RemoveOnEmpty nothing z                    => refused
root  Prune nothing z                            => refused
root  Remove nothing z 1                         => refused
root  MovePid memory,nothing "" @root            => refused
root  Chown memory,nothing z 0 0                 => refused
root  Chmod memory,nothing z "" 755              => refused
root  GetTasksRecursive memory,nothing z         => tasks
root  RemoveOnEmpty memory,nothing x             => ok
root  Prune memory,nothing z                     => ok
gone memory z
root  Prune memory,nothing z                     => ok
root  Prune memory z                             => refused
root  Create memory z                            => new
root  Remove memory,nothing z 1                  => refused
"#;

/// What one may not touch in a list is passed over.
const PASSED_OVER: &str = r#"
make bobs
give memory bobs bob
at bob bobs
v1 bob Create freezer x                          => refused
ours v1 bob Create freezer,pids x                => refused
v1 bob Create freezer,memory x                   => new
v1 bob Create freezer,memory x                   => existed
v1 gone freezer bobs/x
v1 there memory bobs/x
v1 bob Chmod freezer,memory x "" 700             => refused
v1 bob Remove freezer x 1                        => absent
v1 bob Create memory,nothing y                   => refused
v1 make bobs/w
v1 give memory bobs/w bob
v1 bob Chmod freezer,memory w "" 700             => ok
v1 bob RemoveOnEmpty freezer,memory w            => ok ! refused (this one did not pass over what the others do)
v1 alice Create all a                            => new
v1 gone devices home/a
ours v1 there pids home/a
ours v1 alice Create devices b                   => refused
ours v1 root Create devices b                    => new
# If that is all it is an error.
make others
make others/x
at bob others
bob   Create freezer,memory y                    => refused ! new (nothing was done)
bob   Chmod freezer,memory "" "" 700             => refused ! ok (nothing was done)
bob   Remove freezer,memory x 1                  => refused ! removed (nothing was done)
bob   RemoveOnEmpty freezer,memory x             => refused
gone memory others/y
there memory others/x
"#;

/// Paths: contract 2.4.
const PATHS: &str = r#"
alice Create memory ..                           => refused
alice Create memory a/../b                       => refused
alice Create memory x..y                         => refused
alice Create memory ../home/a                    => refused
alice Create memory ""                           => new
alice Create memory /                            => existed
alice Create memory .                            => existed
alice Create memory /abs                         => new
there memory home/abs
alice Create memory abs//./b/                    => new
there memory home/abs/b
alice ListChildren memory abs                    => names b
alice ListChildren memory $J/home/abs            => names b
alice ListChildren memory /abs                   => refused
alice ListChildren memory $J                     => refused
alice ListChildren memory /                      => refused
alice ListKeys memory /                          => refused ! keys release_agent=0:644 (weakness 12)
alice ListKeys memory $J                         => refused ! keys tasks=0:644 (weakness 12)
alice GetTasks memory $J                         => refused
alice GetTasksRecursive memory /                 => refused
alice GetValue memory $J memory.usage_in_bytes   => refused
alice GetValue memory $J/home memory.usage_in_bytes => number
alice GetValue memory x..y tasks                 => refused
alice SetValue memory $J/home/abs memory.limit_in_bytes 20480000 => ok
alice GetValue memory abs memory.limit_in_bytes  => text 20480000
alice MovePid memory /abs @alice                 => refused
alice MovePid memory .. @alice                   => refused
plain alice MovePidAbs memory $J/home/abs @alice => ok
scm alice MovePidAbs memory /abs @alice          => ok
in alice memory home/abs
alice GetPidCgroup memory @alice                 => text /
alice GetPidCgroupAbs memory @alice              => text $J/home/abs | text /
alice GetPidCgroup memory @bob                   => refused
alice GetPidCgroupAbs memory @bob                => text $J/home | refused
root  GetPidCgroup memory @alice                 => text home/abs
root  GetPidCgroupAbs memory @alice              => text $J/home/abs | text /home/abs
root  GetPidCgroup memory 0                      => refused
root  GetValue memory home ../tasks              => refused ! lines @root (weakness 1)
root  GetValue memory "" home/tasks              => refused ! lines @bob (weakness 1)
root  GetValue memory "" /etc/passwd             => refused
root  GetValue memory "" ""                      => refused
root  GetValue memory "" nothing                 => refused
root  GetValue memory nothing memory.usage_in_bytes => refused
root  Chmod memory home a/tasks 666              => refused
root  Chmod memory home a\tasks 666              => refused
# Two dots anywhere are refused whoever asks, also where there is such a cgroup.
make x..y
root  GetValue memory x..y memory.usage_in_bytes => refused
root  SetValue memory x..y memory.limit_in_bytes 40960000 => refused
root  GetTasks memory x..y                       => refused
root  GetTasksRecursive memory x..y              => refused
root  ListChildren memory x..y                   => refused
root  ListKeys memory x..y                       => refused
root  Chown memory x..y $bob $bob                => refused
root  Chmod memory x..y "" 700                   => refused
root  MovePid memory x..y @bob                   => refused
plain root MovePidAbs memory $J/x..y @bob        => refused
scm root MovePidAbs memory /x..y @bob            => refused
root  RemoveOnEmpty memory x..y                  => refused
root  Prune memory x..y                          => refused
root  Remove memory x..y 1                       => refused
there memory x..y
root  GetValue memory home/../home memory.usage_in_bytes => refused
root  Chmod memory home/../home "" 777           => refused
# To what changes something the / at the beginning means nothing.
root  Create memory /s/t/u                       => new
root  Chmod memory /s/t "" 700                   => ok
root  Chown memory /s $bob $bob                  => ok
owner bob memory s
root  Remove memory /s/t/u 0                     => removed
root  Remove memory /s/t/u 0                     => absent
task t root ""
root  MovePid memory s/t @t                      => ok
root  RemoveOnEmpty memory /s/t                  => ok
root  Prune memory /s                            => ok
there memory s/t
end t
ours gone memory s
"#;

/// One that a gate asks for: contract 2.2, the actors p and r.
const GATES: &str = r#"
make gate
at root gate
make gate/in
give memory gate/in alice
at alice gate/in
alice<root GetPidCgroup memory @alice            => text /
alice<root GetPidCgroupAbs memory @alice         => text /in
alice<root Create memory x                       => new
there memory gate/in/x
owner alice memory gate/in/x
alice<root GetValue memory x memory.usage_in_bytes => number
alice<root GetValue memory $J/gate/in/x memory.usage_in_bytes => number
alice<root GetValue memory $J/home memory.usage_in_bytes => refused
alice<root ListChildren memory /in               => refused
alice<root MovePid memory x @alice               => ok
in alice memory gate/in/x
alice<root MovePidAbs memory /in @alice          => ok
in alice memory gate/in
alice<root MovePidAbs memory /../home @alice     => refused
alice<root GetTasks memory $J                    => refused
alice<root GetTasks memory $J/gate/in            => tasks @alice
alice<root GetTasksRecursive memory $J/gate      => tasks @alice @root
alice<root ListKeys memory $J/gate/in/x          => keys cgroup.procs=$alice:644
alice<root ListChildren memory $J/gate/in        => names x
alice<root SetValue memory $J/gate/in/x memory.limit_in_bytes 40960000 => ok
alice<root SetValue memory $J/home memory.limit_in_bytes 40960000 => refused
alice<root Chown memory x $alice $alice          => refused
alice<root Chmod memory x "" 700                 => ok
alice<root Remove memory x 0                     => removed
alice<root Create memory x                       => new
alice<root GetPidCgroup memory @root             => refused
alice<root GetPidCgroupAbs memory @root          => text /
alice<root GetPidCgroup memory @bob              => refused
root<root Chown memory in/x $alice $bob          => ok
# Where systemd puts a gate, or the first process of a container, is no part of the paths of moves.
make gate/init.scope
at root gate/init.scope
alice<root MovePidAbs memory /in/x @alice        => ok
in alice memory gate/in/x
make gate/system.slice
make gate/system.slice/cgproxy.service
at root gate/system.slice/cgproxy.service
alice<root MovePidAbs memory /in @alice          => ok
in alice memory gate/in
make gate/in/init.scope
at alice gate/in/init.scope
alice<root MovePid memory x @alice               => ok
in alice memory gate/in/x
at alice gate/in
at root gate
# Who asks has to be somebody whom the gate answers for.
root<alice Create memory y                       => refused ! new (it did not ask who says so)
bob<alice  Create memory y                       => refused
ours gone memory gate/y
gone memory home/y
# A gate sees no more than what is below itself.
at bob home
bob<root GetValue memory "" memory.usage_in_bytes => refused
bob<root GetPidCgroupAbs memory @bob             => refused
"#;

/// Each method on its own: contract 2.5 and 2.6.
const METHODS: &str = r#"
plain root Ping 7                                => ok
alice Create memory a/b                          => new
alice Create memory a/b                          => existed
alice Create memory a                            => existed
alice Create memory a/c                          => new
owner alice memory home/a/c
v1 owner alice memory home/a/c/tasks
owner alice memory home/a/c/cgroup.procs
v1 owner alice memory home/a/c/memory.limit_in_bytes
ours v1 owner root memory home/a/c/notify_on_release
owner root memory home/memory.stat
bob   Create memory b                            => refused
bob   Create memory a/d                          => refused
bob   Create memory a/b                          => existed
bob   Remove memory a/b 1                        => refused
bob   Remove memory nothing 1                    => absent
bob   Chmod memory a "" 777                      => refused
alice Chmod memory a "" 777                      => ok
bob   Create memory a/d                          => new
owner bob memory home/a/d
alice Chown memory a $bob $bob                   => refused
root  Chown memory home/a $bob $bob              => ok
bob   Chmod memory a "" 755                      => ok
owner bob memory home/a
v1 owner bob memory home/a/tasks
ours owner bob memory home/a/cgroup.procs
v1 owner alice memory home/a/memory.limit_in_bytes
# -1 is as it is.
root  Create memory kept                         => new
plain root Chown memory kept $bob -1             => ok
plain root Chown memory kept -1 $bob             => ok
plain owner bob memory kept
ours plain owner bob memory kept/cgroup.procs
root  Chown memory nothing 0 0                   => refused
root  Chmod memory home nothing 600              => refused
# The kernel has its say on values.
alice SetValue memory a/c memory.limit_in_bytes nonsense => refused
alice SetValue memory a/c memory.limit_in_bytes 40960000 => ok
alice GetValue memory a/c memory.limit_in_bytes  => text 40960000
alice SetValue memory "" memory.limit_in_bytes 40960000 => refused
bob   SetValue memory a/c memory.limit_in_bytes 4096 => refused
bob   GetValue memory a/c memory.limit_in_bytes  => text 40960000
alice SetValue memory a/c tasks @alice           => refused
alice SetValue memory a/c cgroup.procs @alice    => refused
v1 alice SetValue memory a/c notify_on_release 1 => refused ! ok (weakness 11)
v1 alice GetValue memory a/c notify_on_release   => text 0 ! text 1 (weakness 11)
v1 alice SetValue memory a/c nothing 1           => refused
alice GetValue memory a/c tasks                  => text ""
alice GetTasks memory a/c                        => tasks
task t alice home
task u bob home
alice MovePid memory a/c @t                      => ok
alice MovePid memory a/c @u                      => refused
root  MovePid memory home/a/c @u                 => ok
alice GetTasks memory a/c                        => tasks @t @u
alice GetTasks memory a                          => tasks
alice GetTasksRecursive memory a                 => tasks @t @u
alice GetTasksRecursive memory,freezer a         => tasks @t @u
alice GetTasksRecursive memory,freezer nothing   => tasks
alice GetTasksRecursive memory nothing           => refused
alice GetValue memory a/c tasks                  => lines @t @u
alice MovePid memory nothing @t                  => refused
bob   MovePid memory a/b @u                      => refused
alice Remove memory a/c 0                        => refused
alice Remove memory a/c 1                        => refused
end t
end u
gone memory nothing
alice Remove memory a/c 1                        => refused
bob   Remove memory a/c 1                        => removed
bob   Remove memory a/c 1                        => absent
alice ListChildren memory ""                     => names a
alice ListChildren memory nothing                => refused
alice ListChildren memory a/b                    => names
v1 alice ListKeys memory a/b                     => keys tasks=$alice:644 cgroup.procs=$alice:644 memory.limit_in_bytes=$alice:644
v2 alice ListKeys memory a/b                     => keys cgroup.procs=$alice:644
alice ListKeys memory nothing                    => refused
"#;

/// What the bits let, and who may move whom: contract 2.5.
const BITS: &str = r#"
root  Create memory g/in                         => new
root  Chown memory g $alice $bob                 => ok
root  Chmod memory g "" 700                      => ok
at bob ""
bob   GetTasks memory g                          => refused
bob   ListChildren memory g                      => refused
bob   ListKeys memory g                          => refused
bob   GetTasksRecursive memory g                 => refused
bob   GetValue memory g memory.usage_in_bytes    => refused
bob   Create memory g/b                          => refused
bob   Chmod memory g "" 777                      => refused
bob   GetTasks memory g/in                       => refused ! tasks (it did not look at the way)
bob   GetValue memory g/in memory.limit_in_bytes => refused ! number (it did not look at the way)
root  Chmod memory g "" 750                      => ok
bob   GetTasks memory g                          => tasks
bob   ListChildren memory g                      => names in
bob   Create memory g/b                          => refused
bob   Remove memory g/in 0                       => refused
bob   RemoveOnEmpty memory g                     => refused
bob   Prune memory g                             => refused
root  Chmod memory g "" 770                      => ok
bob   Create memory g/b                          => new
owner bob memory g/b
bob   Remove memory g/in 0                       => removed
root  Chmod memory g "" 077                      => ok
at alice ""
alice GetTasks memory g                          => refused
alice Create memory g/c                          => refused
alice Chmod memory g "" 755                      => refused
root  GetTasks memory g                          => tasks
root  Chmod memory g "" 755                      => ok
v1 alice Chmod memory g tasks 640                => ok
alice SetValue memory g memory.limit_in_bytes 40960000 => refused
root  Chmod memory g memory.limit_in_bytes 666   => ok
alice SetValue memory g memory.limit_in_bytes 40960000 => ok
alice GetValue memory g memory.limit_in_bytes    => text 40960000
alice Chmod memory g memory.limit_in_bytes 600   => ok
alice GetValue memory g memory.limit_in_bytes    => refused
# Moves: one's own, the requestor itself, anybody's for root.
task t alice ""
task u bob ""
alice MovePid memory g @alice                    => ok
alice MovePid memory "" @alice                   => ok
at alice ""
bob   MovePid memory g/b @t                      => refused
bob   MovePid memory g @u                        => refused
v1 root Chmod memory g tasks 666                 => ok
v2 root Chmod memory g cgroup.procs 666          => ok
bob   MovePid memory g @u                        => ok
bob   MovePid memory ./g/b/ @u                   => ok
in u memory g/b
bob   MovePid memory "" @u                       => refused
root  MovePid memory "" @u                       => ok
in u memory ""
plain root MovePid memory g -1                   => refused
plain root MovePid memory g 0                    => refused
plain root GetPidCgroup memory -1                => refused
root  Remove memory "" 0                         => refused
bob   Remove memory "" 0                         => refused
alice SetValue memory g memory.limit_in_bytes "" => refused
alice SetValue memory nothing memory.limit_in_bytes 1 => refused
alice SetValue memory g memory.usage_in_bytes 1  => refused
alice SetValue memory g notify-on-release 1      => refused
alice SetValue memory g release-agent 1          => refused
v1 alice ListKeys memory ""                      => keys memory.limit_in_bytes=0:644
alice ListChildren memory ./g//                  => names b
root  RemoveOnEmpty memory ""                    => ok
root  Prune memory ""                            => ok
gone memory home
# One's own cgroup can't go; CGManager emptied it before it said so.
make k
make k/l
at root k
root  Remove memory "" 1                         => refused
root  Remove memory / 1                          => refused
ours there memory k/l
"#;

/// RemoveOnEmpty and Prune: contract 2.6.
const EMPTY: &str = r#"
alice Create memory a                            => new
bob   RemoveOnEmpty memory a                     => refused
alice RemoveOnEmpty memory nothing               => refused
task t alice home
alice MovePid memory a @t                        => ok
alice RemoveOnEmpty memory a                     => ok
there memory home/a
end t
ours gone memory home/a
# One that is empty already goes at once on cgroup2 only.
alice Create memory b                            => new
alice RemoveOnEmpty memory b                     => ok
v1 there memory home/b
v2 gone memory home/b
v1 alice Remove memory b 0                       => removed
alice Create memory p/q                          => new
alice Create memory p/r/s                        => new
task u alice home
alice MovePid memory p/q @u                      => ok
bob   Prune memory p                             => refused
alice Prune memory nothing                       => refused
alice Prune memory p                             => ok
gone memory home/p/r
there memory home/p/q
end u
ours gone memory home/p
# What was wished holds for the next broker too. Nobody is asked after this: all connections have ended.
alice Create memory r/s                          => new
alice Create memory v/w                          => new
task r alice home
task v alice home
task w alice home
alice MovePid memory r/s @r                      => ok
alice MovePid memory v @v                        => ok
alice MovePid memory v/w @w                      => ok
alice RemoveOnEmpty memory r/s                   => ok
alice Prune memory v                             => ok
ours restart
there memory home/r/s
there memory home/v/w
end r
ours gone memory home/r/s
there memory home/r
end w
ours gone memory home/v/w
there memory home/v
end v
ours gone memory home/v
"#;

/// The behaviours that CGManager's own tests look for, by their numbers: contract 3.
const OWN_TESTS: &str = r#"
# 01 to 05
root  GetValue memory "" memory.usage_in_bytes   => number
root  GetPidCgroup memory @root                  => text /
root  Create memory xxx/b                        => new
root  GetValue memory xxx/b memory.usage_in_bytes => text 0
root  GetValue memory ../xxx0123/b memory.usage_in_bytes => refused
# 06 to 08
task t root ""
root  MovePid memory xxx/b @t                    => ok
in t memory xxx/b
root  GetPidCgroup memory @t                     => text xxx/b
root  MovePid memory xxx @t                      => ok
in t memory xxx
at alice ""
alice MovePid memory xxx @t                      => refused
in t memory xxx
root  MovePid memory xxx @root                   => ok
in root memory xxx
root  GetPidCgroup memory @root                  => text /
at root ""
# 09: CGManager 0.42 fails here, and leaves out cgroup.procs: weakness 14
root  Create memory zzz                          => new
root  Chown memory zzz $alice $alice             => ok
owner alice memory zzz
v1 owner alice memory zzz/tasks
ours owner alice memory zzz/cgroup.procs
v1 owner root memory zzz/memory.limit_in_bytes
# 10 to 13, 16
alice MovePid memory zzz @alice                  => ok
in alice memory zzz
at alice ""
alice SetValue memory zzz memory.limit_in_bytes 20000 => refused
alice Create memory zzz/b                        => new
alice SetValue memory zzz/b memory.limit_in_bytes 204800 => ok
alice GetValue memory zzz/b memory.limit_in_bytes => text 204800
# 14
root  Create memory r/a/b                        => new
root  Create memory r/c                          => new
root  Remove memory r 0                          => refused
root  ListChildren memory r                      => names a c
root  Remove memory r/c 0                        => removed
root  ListChildren memory r                      => names a
root  Remove memory r 1                          => removed
gone memory r
# 15, 25
root  MovePid memory xxx/b @t                    => ok
root  GetTasks memory xxx/b                      => tasks @t
task u root ""
root  MovePid memory xxx @u                      => ok
root  GetTasks memory xxx                        => tasks @u
root  GetTasksRecursive memory xxx               => tasks @t @u
# 17
v1 root  Chmod memory zzz tasks 600              => ok
v1 bob   Chmod memory home/zzz tasks 666         => refused
at bob ""
bob   Chmod memory zzz cgroup.procs 666          => refused
alice Chmod memory zzz cgroup.procs 664          => ok ! refused (weakness 14)
# 18
plain version                                    => 10
# 19
alice MovePid memory / @alice                    => refused
root  MovePidAbs memory / @root                  => ok
scm in root memory ""
at root ""
# 20
root  Create memory empty                        => new
root  ListChildren memory empty                  => names
root  ListChildren memory missing                => refused
# 21
v1 root Create memory,freezer roe                => new
v1 root RemoveOnEmpty memory roe                 => ok
v1 task w root ""
v1 root MovePid memory,freezer roe @w            => ok
v1 end w
ours v1 gone memory roe
v1 there freezer roe
# 22 is in the scene of gates
# 23
plain root ListControllers                       => controllers ! names freezer memory (it has no others)
# 24
at alice ""
root  Create memory prune/a/b                    => new
alice Prune memory prune                         => refused
there memory prune/a/b
task v root ""
root  MovePid memory prune/a/b @v                => ok
root  Prune memory prune                         => ok
there memory prune/a/b
end v
ours gone memory prune
# 26
root  Create memory ids                          => new
root  Chown memory ids 100000 100000             => ok
root  ListKeys memory ids                        => keys cgroup.procs=100000:644 ! keys tasks=100000:644 cgroup.procs=0:644 (weakness 14)
# 27
root  Create memory one                          => new
root  Create memory two                          => new
at bob one
bob   GetValue memory $J/two memory.usage_in_bytes => refused
bob   GetValue memory $J/one memory.usage_in_bytes => number
"#;

/// The files of v1's that clients use, by their names on every host; on cgroup2 what stands behind them, both ways.
const KEYS: &str = r#"
root  Create all k                               => new
root  GetValue memory k memory.limit_in_bytes    => text 9223372036854771712
root  SetValue memory k memory.limit_in_bytes 40960000 => ok
root  GetValue memory k memory.limit_in_bytes    => text 40960000
v2 has memory k/memory.max 40960000
v2 root SetValue memory k memory.memsw.limit_in_bytes 61440000 => ok
v2 has memory k/memory.swap.max 20480000
v2 root SetValue memory k memory.swap.max max    => ok
v2 root SetValue memory k memory.max 20480000    => ok
v2 root GetValue memory k memory.limit_in_bytes  => text 20480000
v2 root GetValue memory k memory.max             => text 20480000
root  SetValue memory k memory.limit_in_bytes -1 => ok
root  GetValue memory k memory.limit_in_bytes    => text 9223372036854771712
v2 has memory k/memory.max max
root  GetValue memory k memory.usage_in_bytes    => number
root  GetValue memory k memory.max_usage_in_bytes => number
root  GetValue memory k memory.failcnt           => text 0
root  GetValue memory k memory.stat              => figures cache rss mapped_file pgfault total_cache total_rss
root  ListKeys memory k                          => keys memory.limit_in_bytes=0:644 memory.usage_in_bytes=0:444 memory.stat=0:444
v2 root GetValue memory k memory.soft_limit_in_bytes => refused memory.soft_limit_in_bytes has no equal on cgroup2 | refused
v2 root SetValue memory k memory.swappiness 10   => refused memory.swappiness has no equal on cgroup2 | refused
root  GetValue freezer k freezer.state           => text THAWED
root  SetValue freezer k freezer.state FROZEN    => ok
root  GetValue freezer k freezer.state           => text FROZEN
v2 has freezer k/cgroup.freeze 1
root  SetValue freezer k freezer.state THAWED    => ok
root  GetValue freezer k freezer.state           => text THAWED
v2 root SetValue freezer k cgroup.freeze 1       => ok
v2 root GetValue freezer k freezer.state         => text FROZEN
root  SetValue freezer k freezer.state COLD      => refused
ours root GetValue cpu k cpu.shares              => text 1024
ours root SetValue cpu k cpu.shares 512          => ok
ours root GetValue cpu k cpu.shares              => text 512
v2 has cpu k/cpu.weight 50
v2 root SetValue cpu k cpu.weight 200            => ok
v2 root GetValue cpu k cpu.shares                => text 2048
ours root GetValue cpu k cpu.cfs_quota_us        => text -1
ours root GetValue cpu k cpu.cfs_period_us       => text 100000
ours root SetValue cpu k cpu.cfs_quota_us 50000  => ok
ours root SetValue cpu k cpu.cfs_period_us 200000 => ok
ours root GetValue cpu k cpu.cfs_quota_us        => text 50000
ours root GetValue cpu k cpu.cfs_period_us       => text 200000
v2 has cpu k/cpu.max 50000 200000
ours root SetValue cpu k cpu.cfs_quota_us -1     => ok
ours root GetValue cpu k cpu.cfs_quota_us        => text -1
v2 has cpu k/cpu.max max 200000
v2 root SetValue cpu k cpu.max 70000~100000      => ok
v2 root GetValue cpu k cpu.cfs_quota_us          => text 70000
ours root GetValue cpu k cpu.stat                => figures nr_periods nr_throttled throttled_time
ours root GetValue cpuacct k cpuacct.usage       => number
ours root GetValue cpuacct k cpuacct.stat        => figures user system
ours root ListKeys cpu k                         => keys cpu.shares=0:644 cpu.cfs_quota_us=0:644 cpu.cfs_period_us=0:644
ours root GetValue pids k pids.max               => text max
ours root SetValue pids k pids.max 7             => ok
ours root GetValue pids k pids.max               => text 7
ours root GetValue pids k pids.current           => text 0
ours root SetValue cpuset k cpuset.cpus 0        => ok
ours root GetValue cpuset k cpuset.cpus          => text 0
ours root SetValue cpuset k cpuset.mems 0        => ok
ours root GetValue cpuset k cpuset.mems          => text 0
v2 has cpuset k/cpuset.cpus 0
ours root GetValue cpuset k cpuset.effective_cpus => text 0
ours root GetValue blkio k blkio.throttle.read_bps_device => text ""
ours root SetValue blkio k blkio.throttle.read_bps_device $DISK~1048576 => ok
ours root SetValue blkio k blkio.throttle.write_iops_device $DISK~100 => ok
ours root GetValue blkio k blkio.throttle.read_bps_device => text $DISK 1048576
ours root GetValue blkio k blkio.throttle.write_iops_device => text $DISK 100
v2 has blkio k/io.max $DISK rbps=1048576 wbps=max riops=max wiops=100
ours root SetValue blkio k blkio.throttle.read_bps_device $DISK~0 => ok
ours root GetValue blkio k blkio.throttle.read_bps_device => text ""
v2 root SetValue blkio k io.max $DISK~wbps=2097152 => ok
v2 root GetValue blkio k blkio.throttle.write_bps_device => text $DISK 2097152
ours root GetValue blkio k blkio.throttle.io_service_bytes => figures Total
ours root SetValue blkio k blkio.throttle.read_bps_device fast => refused
"#;

/// The types of a method's arguments: `o` is a number that is written in octal, `p` a pid, `u` a uid or gid.
fn types(method: &str) -> &'static str {
    match method {
        "Ping" => "i",
        "ListControllers" => "",
        "GetPidCgroup" | "GetPidCgroupAbs" => "sp",
        "Chown" => "ssuu",
        "Chmod" => "ssso",
        "MovePid" | "MovePidAbs" => "ssp",
        "GetValue" => "sss",
        "SetValue" => "ssss",
        "Remove" => "ssi",
        _ => "ss",
    }
}

/// Whom the table is tried on.
enum Server {
    Ours(Manager),
    Theirs(Original),
}

impl Server {
    fn start(lab: &Lab) -> Self {
        let Ok(program) = std::env::var(ORIGINAL) else { return Self::Ours(Manager::start(lab)) };
        Self::Theirs(Original::start(lab, &program, &THEIRS).unwrap_or_else(|absent| panic!("{absent}")))
    }

    fn socket(&self) -> &Path {
        match self {
            Self::Ours(manager) => &manager.socket,
            Self::Theirs(original) => &original.socket,
        }
    }

    /// A client. libdbus's server loses what comes with a descriptor right behind BEGIN: contract 2.1.
    fn client(&self, user: &User) -> Peer {
        let peer = Peer::of(user, self.socket());
        peer.does("Ping", crate::arguments![0]);
        peer
    }
}

/// A scene.
struct Scene<'a> {
    lab: &'a Lab,
    server: Server,
    // Before the cgroups: they are emptied by their end.
    tasks: BTreeMap<String, Process>,
    actors: BTreeMap<&'static str, (Peer, User)>,
    jails: Vec<(String, Jail)>,
    root: Peer,
    twin: bool,
    differences: Vec<String>,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab, twin: bool) -> Self {
        let server = Server::start(lab);
        // A cgroup2 that nothing mounts is no hierarchy of anybody's.
        let trees = lab.host.trees.iter().filter(|tree| lab.host.kind != Kind::V1 || tree.name != "cgroup2");
        let jails = trees.map(|tree| {
            let path = format!("/cgm-{}-{}", lab.instance, if twin { "scm" } else { "plain" });
            let dir = tree.root.join(&path[1..]);
            fs::create_dir(&dir).unwrap();
            furnish(&tree.root, &dir);
            (tree.name.clone(), Jail { dir, path })
        });
        let jails = jails.collect();
        let actors = [("root", lab.root()), ("alice", lab.user()), ("bob", lab.user())];
        let actors = actors.map(|(name, user)| (name, (server.client(&user), user))).into();
        let root = Peer::over(UnixStream::connect(server.socket()).unwrap(), None);
        let (tasks, differences) = (BTreeMap::new(), Vec::new());
        let mut scene = Self { lab, server, tasks, actors, jails, root, twin, differences };
        scene.play("make home\ngive all home alice\nat root \"\"\nat alice home\nat bob home");
        scene
    }

    fn play(&mut self, text: &str) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            self.line(line);
        }
        let differences = std::mem::take(&mut self.differences);
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    fn line(&mut self, line: &str) {
        let v2 = self.lab.host.kind == Kind::V2;
        let text = self.filled(line);
        let (asked, answer) = text.split_once("=>").unwrap_or((&text, ""));
        let mut words: Vec<&str> =
            asked.split_whitespace().map(|word| if word == "\"\"" { "" } else { word }).collect();
        while let Some(holds) = match words[0] {
            "v1" => Some(!v2),
            "v2" => Some(v2),
            "plain" => Some(!self.twin),
            "scm" => Some(self.twin),
            "ours" => Some(!self.is_original()),
            _ => None,
        } {
            if !holds {
                return;
            }
            words.remove(0);
        }
        if answer.is_empty() {
            if let Some(found) = self.set(&words, line) {
                self.differences.push(format!("{line}\n  but {found}"));
            }
            return;
        }
        let answer = self.expected(answer, line);
        let Some(said) = self.asks(&words, line) else { return };
        if !self.is(&said, answer) {
            self.differences.push(format!("{line}\n  expected {answer}\n  but it is {said}"));
        }
    }

    fn is_original(&self) -> bool {
        matches!(self.server, Server::Theirs(_))
    }

    /// The answer of this round.
    fn expected<'b>(&self, answers: &'b str, line: &str) -> &'b str {
        let (ours, theirs) = answers.split_once('!').unwrap_or((answers, ""));
        let answers = match theirs.split_once('(') {
            Some((theirs, _)) if self.is_original() => theirs,
            Some(_) => ours,
            None => {
                assert!(theirs.is_empty(), "{line}: why?");
                ours
            }
        };
        let (plain, scm) = answers.split_once('|').unwrap_or((answers, answers));
        if self.twin { scm } else { plain }.trim()
    }

    fn filled(&self, line: &str) -> String {
        let mut text = line.replace("$J", &self.jails[0].1.path);
        for (name, (peer, user)) in &self.actors {
            text = text.replace(&format!("${name}"), &user.uid.to_string());
            text = text.replace(&format!("@{name}"), &peer.pid().to_string());
        }
        for (name, task) in &self.tasks {
            text = text.replace(&format!("@{name}"), &task.pid.to_string());
        }
        if text.contains("$DISK") { text.replace("$DISK", &disk()) } else { text }
    }

    fn jail(&self, controller: &str) -> &Jail {
        let v1 = self.jails.iter().find(|(name, _)| name.split(',').any(|one| one == controller));
        let v2 = || self.jails.iter().find(|(name, _)| name == "cgroup2");
        &v1.or_else(v2).unwrap_or_else(|| panic!("no {controller}")).1
    }

    /// The hierarchy of a controller.
    fn tree(&self, controller: &str) -> &str {
        &self.lab.host.with(controller).unwrap().name
    }

    fn pid(&self, name: &str) -> u32 {
        self.tasks.get(name).map_or_else(|| self.actors[name].0.pid(), |task| task.pid)
    }

    /// Puts a process into a cgroup, in all hierarchies that have it, as root does.
    fn put(&self, pid: u32, cgroup: &str) {
        if self.is_original() {
            for (_, jail) in self.jails.iter().filter(|(name, jail)| jail.has(cgroup) && name != "cgroup2") {
                fs::write(jail.dir.join(cgroup).join("cgroup.procs"), pid.to_string()).unwrap();
            }
            return;
        }
        let path = format!("{}/{cgroup}", self.jails[0].1.path);
        let v2 = self.lab.host.kind == Kind::V2;
        let there = self.jails.iter().filter(|(name, jail)| jail.has(cgroup) && (v2 || name != "cgroup2"));
        let there = there.map(|(name, _)| if v2 { "memory" } else { name.split(',').next().unwrap() });
        let list = there.collect::<Vec<_>>().join(",");
        self.root.does("MovePidAbs", crate::arguments![&list, &path, pid]);
    }

    /// Sets the scene, or looks at the kernel; what is not as it should be.
    fn set(&mut self, words: &[&str], line: &str) -> Option<String> {
        match *words {
            ["make", cgroup] => {
                for (_, jail) in &self.jails {
                    fs::create_dir(jail.dir.join(cgroup)).unwrap();
                    let dir = jail.dir.join(cgroup);
                    furnish(dir.parent().unwrap(), &dir);
                }
            }
            ["give", controller, cgroup, name] => {
                let user = &self.actors[name].1;
                for (_, jail) in self
                    .jails
                    .iter()
                    .filter(|(tree, _)| controller == "all" || *tree == self.tree(controller))
                {
                    let files = ["", "tasks", "cgroup.procs", "cgroup.subtree_control"];
                    let files = files.map(|file| jail.dir.join(cgroup).join(file));
                    for file in files.iter().filter(|file| file.exists()) {
                        std::os::unix::fs::chown(file, Some(user.uid), Some(user.gid)).unwrap();
                    }
                }
            }
            ["at", name, cgroup] => self.put(self.pid(name), cgroup),
            ["task", name, owner, cgroup] => {
                let task = self.actors[owner].1.sleeper();
                self.put(task.pid, cgroup);
                self.tasks.insert(name.to_owned(), task);
            }
            ["end", name] => drop(self.tasks.remove(name).unwrap()),
            ["in", name, controller, cgroup] => {
                let all = crate::common::user::cgroups_of(self.pid(name));
                let mine = all.iter().find(|(tree, _)| tree.split(',').any(|one| one == controller));
                let mine = mine.or_else(|| all.iter().find(|(tree, _)| tree == "cgroup2")).unwrap();
                let path = mine.1.strip_suffix("/.cgm_leaf").unwrap_or(&mine.1);
                let expected = format!("{}/{cgroup}", self.jails[0].1.path);
                return (path != expected.trim_end_matches('/')).then(|| format!("it is in {path}"));
            }
            ["owner", name, controller, file] => {
                let meta = fs::metadata(self.jail(controller).dir.join(file)).unwrap();
                let user = &self.actors[name].1;
                let is = (meta.uid(), meta.gid());
                return (is != (user.uid, user.gid)).then(|| format!("it is {}'s, {}'s", is.0, is.1));
            }
            ["there", controller, cgroup] => {
                return (!self.jail(controller).has(cgroup)).then(|| "it is not".to_owned());
            }
            ["restart"] => {
                let Server::Ours(manager) = &mut self.server else { panic!("{line}") };
                assert_eq!(manager.broker.stop(), 0);
                manager.broker.start_again();
            }
            ["has", controller, file, ref value @ ..] => {
                let found = fs::read_to_string(self.jail(controller).dir.join(file)).unwrap();
                return (found.trim_end() != value.join(" ")).then(|| format!("it has {found}"));
            }
            ["gone", controller, cgroup] => wait_until(line, || !self.jail(controller).has(cgroup)),
            _ => panic!("{line}"),
        }
        None
    }

    /// Asks; the answer in the words of the table. `None` if there is no such call in this round.
    fn asks(&self, words: &[&str], line: &str) -> Option<String> {
        if let ["version"] = words {
            let properties = "org.freedesktop.DBus.Properties";
            let arguments = crate::arguments![crate::common::cgmanager::INTERFACE, "api_version"];
            let path = crate::common::cgmanager::PATH;
            let reply = self.root.call_at(path, properties, "Get", arguments).unwrap();
            let version: zbus::OwnedVariant = reply.body().deserialize().unwrap();
            return Some(i32::try_from(version).unwrap().to_string());
        }
        let (who, gate) = words[0].split_once('<').map_or((words[0], None), |(who, gate)| (who, Some(gate)));
        let method = words[1];
        let rest: Vec<String> = words[2..].iter().map(|word| word.replace('~', " ")).collect();
        let types = types(method);
        assert_eq!(types.len(), rest.len(), "{line}");
        let number = |at: usize| {
            let radix = if types.as_bytes()[at] == b'o' { 8 } else { 10 };
            i32::from_str_radix(&rest[at], radix).unwrap_or_else(|_| panic!("{line}: {}", rest[at]))
        };
        let arguments = types.char_indices().map(|(at, kind)| match kind {
            's' => Argument::Text(&rest[at]),
            _ => Argument::Number(number(at)),
        });
        let arguments: Vec<Argument<'_>> = arguments.collect();
        if !self.twin {
            if gate.is_some() {
                return None;
            }
            return Some(plain(&self.actors[who].0, method, &arguments));
        }
        if matches!(method, "Ping" | "ListControllers") {
            return None;
        }
        let named = types.find(['p', 'u']).unwrap_or(types.len());
        let (peer, user) = &self.actors[who];
        let mut credentials = vec![Credential::of(peer.pid(), user.uid)];
        match &types[named..] {
            "p" if number(named) == 0 => return None,
            "p" => credentials.push(self.victim(number(named).cast_unsigned())),
            "uu" => {
                let [uid, gid] = [number(named), number(named + 1)].map(i32::cast_unsigned);
                credentials.push(Credential { pid: std::process::id(), uid, gid });
            }
            _ => {}
        }
        let gate = &self.actors[gate.unwrap_or(who)].0;
        let scm = gate.scm(&format!("{method}Scm"), &arguments[..named], &credentials);
        Some(twin(&scm, method))
    }

    /// A process as somebody who may would name it.
    fn victim(&self, pid: u32) -> Credential {
        let meta = fs::metadata(format!("/proc/{pid}")).unwrap();
        Credential { pid, uid: meta.uid(), gid: meta.gid() }
    }

    fn is(&self, said: &str, expected: &str) -> bool {
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        match expected.split_once(' ').map_or(expected, |(kind, _)| kind) {
            "number" => said.strip_prefix("text ").is_some_and(|value| value.parse::<u64>().is_ok()),
            "lines" => sorted(&said.replace("text ", "lines ")) == sorted(expected),
            "tasks" | "names" => sorted(said) == sorted(expected),
            "keys" => expected.split(' ').all(|key| said.split(' ').any(|one| one == key)),
            "controllers" => self.are_all_controllers(said),
            "figures" => {
                let lines: Vec<&str> = said.strip_prefix("text ").into_iter().flat_map(str::lines).collect();
                let has = |name: &str| lines.iter().any(|line| line.starts_with(&format!("{name} ")));
                expected.split(' ').skip(1).all(has)
            }
            "refused" => {
                said.strip_prefix("refused").is_some_and(|why| why.contains(&expected["refused".len()..]))
            }
            _ => said == expected.replace("\"\"", "").trim_end() || said == expected,
        }
    }

    /// Each v1 hierarchy that this process is in; and cgroup2, by what it has beside those, if it is there.
    fn are_all_controllers(&self, said: &str) -> bool {
        let known: Vec<String> = crate::common::user::cgroups_of(std::process::id())
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name != "cgroup2")
            .collect();
        let (v1, v2): (Vec<&str>, Vec<&str>) =
            said.split(' ').skip(1).partition(|said| known.iter().any(|name| name == said));
        let on_v2 = |name: &str| matches!(name, "cpuacct" | "freezer") || !self.lab.host.is_v1(name);
        let all = ["cpu", "cpuacct", "cpuset", "blkio", "freezer", "memory", "pids"];
        let all = all.iter().filter(|_| self.lab.host.kind == Kind::V2);
        v1.len() == known.len()
            && v2.len() <= 1
            && v2.iter().all(|names| names.split(',').all(on_v2))
            && all.into_iter().all(|name| v2.iter().any(|names| names.split(',').any(|one| one == *name)))
    }
}

/// The number of a disk of the machine's, whole, with something on it. A path to one of NVMe's has none.
fn disk() -> String {
    let mut all = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap());
    let number = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let is_none = ["loop", "ram", "zram", "sr", "fd", "dm-"]
            .iter()
            .any(|begin| name.to_str().unwrap().starts_with(begin));
        if is_none { None } else { fs::read_to_string(entry.path().join("dev")).ok() }
    };
    all.find_map(|entry| number(&entry)).expect("there is no disk").trim().to_owned()
}

/// What an administrator does for a cgroup that is made by hand: a v1 cpuset has nothing to run on, and on cgroup2 a cgroup has
/// the controllers that are enabled above it.
pub fn furnish(above: &Path, dir: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| dir.join("tasks").exists()) {
        if let Ok(value) = fs::read(above.join(file)) {
            fs::write(dir.join(file), value).unwrap();
        }
    }
    let controllers = fs::read_to_string(above.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // Not each can be had everywhere: `cpu` not beside realtime processes.
        let _ = fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// A plain call's answer in the words of the table.
fn plain(peer: &Peer, method: &str, arguments: &[Argument<'_>]) -> String {
    let reply = match peer.call(method, arguments) {
        Ok(reply) => reply,
        Err(Failure { name, text }) => {
            assert_eq!(name, crate::common::cgmanager::INVALID_ARGS, "{method}: {text}");
            return text
                .strip_prefix("invalid request")
                .map_or(text.clone(), |why| format!("refused{}", why.trim_start_matches(':')));
        }
    };
    let body = reply.body();
    match method {
        "Create" | "Remove" => existed(method, body.deserialize::<i32>().unwrap()),
        "GetValue" | "GetPidCgroup" | "GetPidCgroupAbs" => {
            format!("text {}", body.deserialize::<String>().unwrap()).trim_end().to_owned()
        }
        "GetTasks" | "GetTasksRecursive" => listed("tasks", body.deserialize::<Vec<i32>>().unwrap()),
        "ListChildren" | "ListControllers" => listed("names", body.deserialize::<Vec<String>>().unwrap()),
        "ListKeys" => {
            let keys: Vec<(String, u32, u32, u32)> = body.deserialize().unwrap();
            listed("keys", keys.iter().map(|(name, uid, gid, mode)| key(name, *uid, *gid, *mode)))
        }
        _ => {
            body.deserialize::<()>().unwrap();
            "ok".to_owned()
        }
    }
}

/// A twin's, from its datagrams.
fn twin(scm: &Scm, method: &str) -> String {
    let refused = || "refused".to_owned();
    match method {
        "Create" | "Remove" => match scm.datagram().as_slice() {
            b"0" => refused(),
            b"1" => existed(method, -1),
            b"2" => existed(method, 1),
            other => panic!("{method}: {other:?}"),
        },
        "GetValue" | "GetPidCgroup" | "GetPidCgroupAbs" => {
            let text = scm.datagram();
            let Some((end, text)) = text.split_last() else { return refused() };
            assert_eq!(*end, 0, "{method}");
            format!("text {}", str::from_utf8(text).unwrap()).trim_end().to_owned()
        }
        "GetTasks" | "GetTasksRecursive" => scm.tasks().map_or_else(refused, |pids| listed("tasks", pids)),
        "ListChildren" => scm.names().map_or_else(refused, |names| listed("names", names)),
        "ListKeys" => {
            let Ok(count) = usize::try_from(scm.number()) else { return refused() };
            let length = usize::try_from(scm.number()).unwrap();
            let text = String::from_utf8(scm.datagram()).unwrap();
            assert_eq!(text.len(), length);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 4 * count);
            let number = |text: &str| text.parse::<i32>().unwrap().cast_unsigned();
            let keys = lines.chunks(4);
            listed("keys", keys.map(|k| key(k[0], number(k[1]), number(k[2]), number(k[3]))))
        }
        _ => match scm.datagram().as_slice() {
            b"0" => refused(),
            b"1" => "ok".to_owned(),
            other => panic!("{method}: {other:?}"),
        },
    }
}

fn existed(method: &str, number: i32) -> String {
    match (method, number) {
        ("Create", -1) => "new",
        ("Create", 1) => "existed",
        ("Remove", 1) => "removed",
        ("Remove", -1) => "absent",
        other => panic!("{other:?}"),
    }
    .to_owned()
}

fn listed<T: ToString>(kind: &str, all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().fold(kind.to_owned(), |text, one| format!("{text} {}", one.to_string()))
}

/// A file: its name, its owner, and the bits of its mode. Owner and group are the same here.
fn key(name: &str, uid: u32, gid: u32, mode: u32) -> String {
    assert_eq!(mode & 0o170_000, 0o100_000, "{name} is a file");
    let owner = if uid == gid { uid.to_string() } else { format!("{uid}.{gid}") };
    format!("{name}={owner}:{:o}", mode & 0o7777)
}

/// Plays a part of the table, with plain calls and with their twins.
fn both(lab: &Lab, table: &str) {
    for twin in [false, true] {
        Scene::new(lab, twin).play(table);
    }
}

fn controllers_are_named_as_cgmanager_names_them(lab: &Lab) {
    both(lab, CONTROLLERS);
}

fn what_is_not_allowed_in_a_list_is_passed_over(lab: &Lab) {
    both(lab, PASSED_OVER);
}

fn paths_lead_where_cgmanagers_lead(lab: &Lab) {
    both(lab, PATHS);
}

fn who_asks_and_who_passes_it_on_are_two(lab: &Lab) {
    Scene::new(lab, true).play(GATES);
}

fn every_method_answers_as_cgmanager_does(lab: &Lab) {
    both(lab, METHODS);
}

fn values_have_their_v1_names_everywhere(lab: &Lab) {
    both(lab, KEYS);
}

fn the_bits_decide_as_with_cgmanager(lab: &Lab) {
    both(lab, BITS);
}

fn empty_cgroups_go(lab: &Lab) {
    both(lab, EMPTY);
}

fn what_cgmanagers_own_tests_look_for_is_there(lab: &Lab) {
    both(lab, OWN_TESTS);
}

crate::tests![
    controllers_are_named_as_cgmanager_names_them,
    what_is_not_allowed_in_a_list_is_passed_over,
    paths_lead_where_cgmanagers_lead,
    who_asks_and_who_passes_it_on_are_two,
    every_method_answers_as_cgmanager_does,
    values_have_their_v1_names_everywhere,
    the_bits_decide_as_with_cgmanager,
    empty_cgroups_go,
    what_cgmanagers_own_tests_look_for_is_there,
];
