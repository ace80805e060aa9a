//! A network of the bench's own, in which nodes can be cut off.
//!
//! ```text
//! namespace of the bench: its clients ── bridge `nodes` ──┬── n1 ═ eth0 10.0.0.1, namespace of node 1
//!                                        10.0.0.254       ├── n2 ═ eth0 10.0.0.2, namespace of node 2
//!                                                         └── n3 ═ eth0 10.0.0.3, namespace of node 3
//! ```
//!
//! The bench first runs itself anew in a namespace without any network, so that that of the machine is
//! never touched; there it may do as it likes, and all of it is gone with the last process in it. A node
//! is cut off by pulling its cable: `n1` goes down. Nobody is told, connections stay, nothing arrives.
//!
//! The tools of the system do the work (`unshare`, `nsenter`, `ip`): a program of its own for netlink would
//! be more to read than what it is for.

use crate::base::code::Code;
use crate::base::report::Report;
use crate::loadtest::node::NodeCommand;
use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// How to run a program in a namespace without a network: as root, and as somebody else.
const UNSHARED: [&[&str]; 2] = [&["--net"], &["--net", "--map-root-user"]];
/// What joins the nodes and the bench.
const BRIDGE: &str = "nodes";
/// Where the bench itself is in that network.
const BENCH: &str = "10.0.0.254/24";

/// Runs this program with these arguments in a namespace of its own, in place of this process.
///
/// # Errors
/// If that is not permitted here.
pub(super) fn enter(args: &[OsString]) -> Result<Infallible, Report> {
    let mut last = None;
    for flags in UNSHARED {
        match run("unshare", &[flags, &["true"]].concat()) {
            Ok(()) => {
                let program = env::current_exe().map_err(|error| refused(&error.to_string()))?;
                let mut unshare = Command::new("unshare");
                let error = unshare.args(flags).arg(program).args(args).exec();
                return Err(refused(&error.to_string()));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.expect("one way at least was tried"))
}

/// The network, with a namespace for each node.
#[derive(Debug)]
pub(super) struct Network {
    /// One process in each node's namespace, which is there as long as that.
    keepers: Vec<Child>,
}

impl Network {
    /// Makes it, for nodes 1 to `nodes`. This process is in a namespace of its own ([`enter`]).
    ///
    /// # Errors
    /// If the kernel refuses, or lacks bridges or pairs of interfaces.
    pub(super) fn make(nodes: u8) -> Result<Self, Report> {
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["addr", "add", BENCH, "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        let mut network = Self {
            keepers: Vec::new(),
        };
        for id in 1..=nodes {
            let keeper = keeper()?;
            let pid = keeper.id().to_string();
            network.keepers.push(keeper);
            let port = port(id);
            let pair = ["link", "add", &port, "type", "veth", "peer", "name", "eth0"];
            ip(&[&pair[..], &["netns", &pid]].concat())?;
            ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
            let at_node = |args: &[&str]| {
                let enter = ["-t", &pid, "--net", "ip"];
                run("nsenter", &[&enter, args].concat())
            };
            let address = format!("{}/24", Self::host(id));
            at_node(&["addr", "add", &address, "dev", "eth0"])?;
            at_node(&["link", "set", "lo", "up"])?;
            at_node(&["link", "set", "eth0", "up"])?;
        }
        Ok(network)
    }

    /// The address of a node.
    #[must_use]
    pub(super) fn host(id: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, id)
    }

    /// How to start a node at its place.
    #[must_use]
    pub(super) fn place(&self, id: u8, node: &NodeCommand) -> NodeCommand {
        let keeper = &self.keepers[usize::from(id) - 1];
        let mut leading: Vec<OsString> = vec!["-t".into(), keeper.id().to_string().into()];
        leading.push("--net".into());
        leading.push(node.program.clone().into());
        leading.extend(node.leading.iter().cloned());
        // Nobody else is in this network.
        leading.push("--insecure".into());
        NodeCommand {
            program: "nsenter".into(),
            leading,
        }
    }

    /// Cuts a node off, or joins it again.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn cut(&self, id: u8, off: bool) -> Result<(), Report> {
        let state = if off { "down" } else { "up" };
        ip(&["link", "set", &port(id), state])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            // Fails if it has ended.
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

/// The bench's end of a node's cable.
fn port(id: u8) -> String {
    format!("n{id}")
}

/// A process in a namespace of its own. It ends with its input, so that it outlives nobody.
fn keeper() -> Result<Child, Report> {
    let mut keeper = Command::new("unshare")
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .spawn()
        .map_err(|error| refused(&format!("unshare: {error}")))?;
    // What it says back shows that it has gone where it is to be.
    let mut line = String::new();
    let asked = keeper
        .stdin
        .as_mut()
        .map(|input| input.write_all(b"there\n"));
    let said = keeper
        .stdout
        .as_mut()
        .map(|out| BufReader::new(out).read_line(&mut line));
    match (asked, said) {
        (Some(Ok(())), Some(Ok(bytes))) if bytes > 0 => Ok(keeper),
        _ => Err(refused("unshare --net ended at once")),
    }
}

fn ip(args: &[&str]) -> Result<(), Report> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<(), Report> {
    let said = |why: &str| refused(&format!("{program} {}: {why}", args.join(" ")));
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| said(&error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(said(String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn refused(why: &str) -> Report {
    let what = "--partition needs a network of its own, which this machine does not give it";
    Report::error(Code::BadArgument, what).location(why).fix(
        "run it as root, in a container with the capabilities SYS_ADMIN and NET_ADMIN, or where user \
         namespaces are allowed (sysctl user.max_user_namespaces); it needs unshare and nsenter \
         (util-linux) and ip (iproute2). --signal STOP, which freezes a node, needs nothing",
    )
}
