"""Fails where the library depends on a package that asks for a newer Rust than the one given."""

import json
import subprocess
import sys


def parsed(version):
    return tuple(int(part) for part in version.split("."))[:2]


def cargo(*arguments):
    return subprocess.run(
        ["cargo", *arguments, "--locked", "--all-features"], check=True, capture_output=True, text=True
    ).stdout


stated = sys.argv[1]
# Without the dependencies of tests and examples.
tree = cargo("tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}")
used = {tuple(line.split()[:2]) for line in tree.splitlines()}
newer = []
for package in json.loads(cargo("metadata", "--format-version", "1"))["packages"]:
    wanted = package["rust_version"]
    if (package["name"], f"v{package['version']}") in used and wanted:
        if parsed(wanted) > parsed(stated):
            newer.append(f"{package['name']} {package['version']} wants Rust {wanted}")
if newer:
    sys.exit(f"the library states Rust {stated}, but: " + "; ".join(newer))
print(f"{len(used)} packages, none of which wants a newer Rust than {stated}")
