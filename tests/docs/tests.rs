//! The checks themselves, on small pages.

use crate::{
    allowed_keys, flag_differences,
    help::{self, Flag},
    metric_rows,
    page::{Page, Row, Table, code, differences, tables},
};

const TEXT: &str = "\
# Page

| a | b |
| --- | --- |
| `x` | 1 |

## Part of `it`

```text
| no | table |
```
| a | b |
| :--- | ---: |
| `y`, `z` | `2` |
| w | |

## Rest

Nothing.
";

fn page() -> Page {
    Page { name: "p.md".to_owned(), text: TEXT.to_owned() }
}

#[test]
fn a_section_has_the_tables_below_its_heading() {
    let part = page().table("Part of it", "a");
    assert_eq!(part.rows, [vec!["`y`, `z`".to_owned(), "`2`".to_owned()], vec!["w".to_owned(), String::new()]]);
    assert_eq!(page().table("Page", "a").rows.len(), 3, "with those of the headings below it");
    assert_eq!(tables(TEXT).len(), 2, "a block of code has none");
    assert_eq!(code("`y`, `z`"), ["y", "z"]);
}

#[test]
#[should_panic(expected = "p.md: there is no heading `Nowhere`")]
fn a_heading_that_is_gone_is_named() {
    page().table("Nowhere", "a");
}

#[test]
fn what_differs_is_named_with_page_and_row() {
    let found = |rows: &[Row]| differences("p.md", &page().table("Part of it", "a"), rows);
    assert_eq!(found(&[Row::new("y").says("b", "2"), Row::new("w").says("b", "")]), [""; 0]);
    assert_eq!(
        found(&[Row::new("y").says("b", "3"), Row::new("new")]),
        [
            "p.md: the code has no `w`, take its row out",
            "p.md: `y`, b: the page says `2`, the code `3`",
            "p.md: there is no row for `new`"
        ]
    );
}

const SHORT: &str = "\
Does it

Usage: weft do [OPTIONS]

Options:
  -f, --file <FILE>  The file [default: mesh.yaml]
      --to <URL>     Where to [default: that of the mesh, else none] [env: WEFT_TO=]
  -h, --help         Print help

Examples:
  weft do --not-a-flag
";

const LONG: &str = "\
Does it

Options:
      --how <HOW>
          How it is done

          Possible values:
          - fast: At once
          - slow

          [env: WEFT_HOW=fast]
          [default: slow]

      --connect
          It does so, as --how says

  -V, --version
          Print version
";

fn flag(long: &str, short: Option<&str>, variable: Option<&str>, default: Option<&str>) -> Flag {
    let own = |text: Option<&str>| text.map(str::to_owned);
    Flag { long: long.to_owned(), short: own(short), variable: own(variable), default: own(default) }
}

#[test]
fn flags_are_read_from_both_forms_of_help() {
    assert_eq!(
        help::flags(SHORT),
        [
            flag("--file", Some("-f"), None, Some("mesh.yaml")),
            flag("--to", None, Some("WEFT_TO"), Some("that of the mesh, else none"))
        ]
    );
    assert_eq!(
        help::flags(LONG),
        [flag("--how", None, Some("WEFT_HOW"), Some("slow")), flag("--connect", None, None, None)]
    );
    let commands = "Weft\n\nCommands:\n  up    Run it\n  down  End it\n  help  Print it\n\nOptions:\n";
    assert_eq!(help::commands(commands), ["up", "down"]);
}

#[test]
fn a_flag_that_a_page_has_otherwise_is_named() {
    let table = |rows: &[[&str; 3]]| Table {
        header: ["flag", "what it does", "default"].map(str::to_owned).to_vec(),
        rows: rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect(),
    };
    let good = table(&[["`--file`, `-f`", "", "`mesh.yaml`"], ["`--to` (`WEFT_TO`)", "", "whatever the mesh has"]]);
    assert_eq!(flag_differences("p.md", &good, &help::flags(SHORT)), [""; 0]);
    let bad = table(&[["`--file`", "", "`other.yaml`"], ["`--to`, `-t`", "", ""], ["`--old`", "", ""]]);
    assert_eq!(
        flag_differences("p.md", &bad, &help::flags(SHORT)),
        [
            "p.md: the code has no `--old`, take its row out",
            "p.md: the row of `--file` does not say `-f`",
            "p.md: the default of `--file` is `mesh.yaml`; the page says `other.yaml`",
            "p.md: the row of `--to` does not say `WEFT_TO`",
            "p.md: the row of `--to` says `-t`, which the code does not",
            "p.md: the default of `--to` is `that of the mesh, else none`; the page says ``"
        ]
    );
}

#[test]
fn keys_and_metrics_are_read_from_what_programs_print() {
    let told = "mesh.yaml:1: x-none: unknown key; allowed: namespace, ports (did you mean `ports`?)\n\
                mesh.yaml:2: ports.x-none: unknown key; allowed: outbound, control\n";
    assert_eq!(allowed_keys(told, ""), ["namespace", "ports"]);
    assert_eq!(allowed_keys(told, "ports."), ["outbound", "control"]);
    let rows = metric_rows("# HELP a Calls.\n# TYPE a counter\na_total 1\n# TYPE b gauge\nb 2\n# EOF\n");
    assert_eq!(rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["a_total", "b"]);
}
