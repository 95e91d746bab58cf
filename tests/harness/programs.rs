//! The programs that tests drive: Weft's own, and third-party ones.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The folder of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

/// A binary of the workspace, built with the profile of the test itself. One in `WEFT_BIN_DIR` takes precedence.
///
/// # Panics
/// The workspace does not build.
pub fn binary(name: &str) -> PathBuf {
    if let Some(given) = env::var_os("WEFT_BIN_DIR").map(|dir| Path::new(&dir).join(name)).filter(|path| path.is_file())
    {
        return given;
    }
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--quiet", "--workspace", "--bins", "--features", "weft-cli/kubernetes"])
            .current_dir(root());
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        assert!(cargo.status().expect("cargo runs").success(), "the workspace's binaries do not build");
        // target/PROFILE/deps/TEST
        let test = env::current_exe().expect("a test has a path");
        test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").to_owned()
    });
    folder.join(name)
}

/// A third-party program, if there is one in `target/` or on the `PATH`.
pub fn outside(name: &str) -> Option<PathBuf> {
    let own = root().join("target").join(name);
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    std::iter::once(own).chain(on_path.map(|dir| dir.join(name))).find(|path| path.is_file())
}
