//! Controls callgrind, and reads its profile of one thread.

use std::{collections::HashMap, fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use tokio::{process::Command, time::timeout};

/// How long valgrind may take to do what it is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// The command line that counts a program, thread by thread. The names of its dumps begin with `out`.
pub(super) fn command(out: &str) -> Vec<String> {
    let out = format!("--callgrind-out-file={out}.%p");
    ["valgrind", "--tool=callgrind", "--quiet", "--separate-threads=yes", "--dump-instr=no", &out]
        .map(str::to_owned)
        .to_vec()
}

/// A command for callgrind while a program runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tell {
    /// Forget what was counted so far.
    Zero,
    /// Write down what was counted.
    Dump,
}

/// Sends a command to the callgrind of process `pid`, and waits until it is done.
pub(super) async fn tell(pid: u32, what: Tell) -> Result<()> {
    let what = match what {
        Tell::Zero => "zero",
        Tell::Dump => "dump",
    };
    // As `callgrind_control` does, but only for this process, not for every program under valgrind.
    let mut vgdb = Command::new("vgdb");
    vgdb.args([&format!("--pid={pid}"), what]).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, vgdb.output())
        .await
        .with_context(|| format!("valgrind does not `{what}`"))?
        .context("can't start `vgdb`, a part of valgrind")?;
    ensure!(output.status.success(), "vgdb {what}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// One thread's functions, with their costs and their calls.
#[derive(Debug, Default)]
pub(super) struct Profile {
    functions: Vec<Function>,
}

#[derive(Debug, Default)]
pub(super) struct Function {
    pub(super) name: String,
    /// Instructions in its own code, without its callees.
    pub(super) instructions: u64,
    pub(super) calls: Vec<Call>,
}

/// All calls from one function to another.
#[derive(Debug)]
pub(super) struct Call {
    /// The called function's index in the profile.
    pub(super) callee: usize,
    pub(super) times: u64,
    /// Instructions in the callee and in all that it called.
    pub(super) instructions: u64,
}

impl Profile {
    /// Reads all dumps whose file names begin with `out`, and removes the files. Returns the thread that spent most in
    /// functions with `text` in their names.
    pub(super) fn read(out: &Path, text: &str) -> Result<Self> {
        let prefix = out.file_name().context("no file's name")?.to_string_lossy();
        let mut found: Option<(u64, Self)> = None;
        for entry in fs::read_dir(out.parent().context("no folder")?)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(&*prefix) {
                continue;
            }
            let dump = fs::read_to_string(entry.path())?;
            fs::remove_file(entry.path())?;
            let profile = Self::parse(&dump).with_context(|| format!("{}", entry.path().display()))?;
            let named = profile.functions.iter().filter(|function| function.name.contains(text));
            let spent = named.map(|function| function.instructions).sum();
            if found.as_ref().is_none_or(|(most, _)| spent > *most) {
                found = Some((spent, profile));
            }
        }
        match found {
            Some((1.., profile)) => Ok(profile),
            Some(_) => bail!("no function's name has `{text}` in it: is the program stripped?"),
            None => bail!("valgrind has dumped nothing to {}*", out.display()),
        }
    }

    /// Reads a dump: the parts of <https://valgrind.org/docs/manual/cl-format.html> that callgrind uses.
    pub(super) fn parse(dump: &str) -> Result<Self> {
        let mut parser = Parser::default();
        for (index, line) in dump.lines().enumerate() {
            parser.line(line).with_context(|| format!("line {}: {line}", index + 1))?;
        }
        Ok(parser.profile)
    }

    /// All functions.
    pub(super) fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Instructions in all functions.
    pub(super) fn instructions(&self) -> u64 {
        self.functions.iter().map(|function| function.instructions).sum()
    }

    /// Each function including all that it called. Indirect recursion counts more than once.
    pub(super) fn inclusive(&self) -> Vec<Inclusive<'_>> {
        let mut times = vec![0; self.functions.len()];
        let calls = self.functions.iter().flat_map(|function| &function.calls);
        calls.for_each(|call| times[call.callee] += call.times);
        let others = |index: usize| self.functions[index].calls.iter().filter(move |call| call.callee != index);
        let all = self.functions.iter().enumerate().map(|(index, function)| Inclusive {
            name: &function.name,
            times: times[index],
            own: function.instructions,
            instructions: function.instructions + others(index).map(|call| call.instructions).sum::<u64>(),
        });
        all.collect()
    }

    /// Every call, with the index of its caller.
    pub(super) fn calls(&self) -> impl Iterator<Item = (usize, &Call)> {
        let functions = self.functions.iter().enumerate();
        functions.flat_map(|(caller, function)| function.calls.iter().map(move |call| (caller, call)))
    }
}

/// The cost of one function, including all that it called.
pub(super) struct Inclusive<'a> {
    pub(super) name: &'a str,
    /// How often it was called.
    pub(super) times: u64,
    pub(super) own: u64,
    pub(super) instructions: u64,
}

/// The state from the lines so far.
#[derive(Default)]
struct Parser {
    profile: Profile,
    /// The function of each number: in later lines the number replaces the name.
    numbers: HashMap<String, usize>,
    current: Option<usize>,
    callee: Option<usize>,
    /// The number of calls whose cost is in the next line.
    times: Option<u64>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<()> {
        if let Some(name) = line.strip_prefix("fn=") {
            self.current = Some(self.function(name)?);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            self.callee = Some(self.function(name)?);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            self.times = Some(calls.split(' ').next().unwrap_or_default().parse()?);
        } else if let Some(events) = line.strip_prefix("events:") {
            ensure!(events.trim() == "Ir", "instructions and nothing else were to be counted");
        } else if let Some(positions) = line.strip_prefix("positions:") {
            ensure!(positions.trim() == "line", "instructions were to be counted by function");
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            self.cost(line)?;
        }
        Ok(())
    }

    /// `POSITION INSTRUCTIONS`.
    fn cost(&mut self, line: &str) -> Result<()> {
        let instructions = line.split(' ').nth(1).map_or(Ok(0), str::parse)?;
        let current = &mut self.profile.functions[self.current.context("a cost of no function")?];
        match self.times.take() {
            None => current.instructions += instructions,
            Some(times) => {
                let callee = self.callee.take().context("a call of no function")?;
                current.calls.push(Call { callee, times, instructions });
            }
        }
        Ok(())
    }

    /// Reads `(NUMBER) NAME`, or `(NUMBER)` for a name that came before.
    fn function(&mut self, text: &str) -> Result<usize> {
        let (number, name) = text.split_once(' ').unwrap_or((text, ""));
        if let Some(&function) = self.numbers.get(number) {
            return Ok(function);
        }
        ensure!(!name.is_empty(), "a number without a name");
        let functions = &mut self.profile.functions;
        functions.push(Function { name: name.to_owned(), ..Function::default() });
        self.numbers.insert(number.to_owned(), functions.len() - 1);
        Ok(functions.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "# callgrind format
version: 1
positions: line
events: Ir
thread: 3

ob=(1) /bin/weft-sidecar
fl=(1) ???
fn=(1) serve
0 40
cfn=(2) malloc
calls=3 0
0 90
0 2

fn=(2)
0 60
cob=(2) libc.so
cfn=(3) mmap
calls=1 0
* 30

fn=(3)
+4 30

totals: 132
";

    #[test]
    fn a_dump_is_read() {
        let profile = Profile::parse(DUMP).unwrap();
        assert_eq!(profile.instructions(), 132);
        let own: Vec<_> = profile.functions().iter().map(|it| (it.name.as_str(), it.instructions)).collect();
        assert_eq!(own, [("serve", 42), ("malloc", 60), ("mmap", 30)]);
        let calls: Vec<_> =
            profile.calls().map(|(caller, call)| (caller, call.callee, call.times, call.instructions)).collect();
        assert_eq!(calls, [(0, 1, 3, 90), (1, 2, 1, 30)]);
    }

    #[test]
    fn the_worker_thread_is_found() {
        let dir = tempfile::TempDir::new().unwrap();
        let out = dir.path().join("dump.7.");
        fs::write(dir.path().join("dump.7.1-01"), DUMP.replace("serve", "idle")).unwrap();
        fs::write(dir.path().join("dump.7.1-03"), DUMP).unwrap();
        fs::write(dir.path().join("dump.77.1-01"), "what is this").unwrap();
        let profile = Profile::read(&out, "serve").unwrap();
        assert_eq!(profile.functions()[0].name, "serve");
        assert!(Profile::read(&out, "serve").unwrap_err().to_string().contains("dumped nothing"));
    }

    #[test]
    fn a_stripped_program_is_reported() {
        let dir = tempfile::TempDir::new().unwrap();
        fs::write(dir.path().join("dump.7.1-01"), DUMP).unwrap();
        let error = Profile::read(&dir.path().join("dump.7."), "weft_wire").unwrap_err();
        assert!(error.to_string().contains("stripped"), "{error}");
    }
}
