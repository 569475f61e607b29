#!/usr/bin/env bash
# Builds what is released into a folder: sdist and wheel of the daemon and of the Python client, a
# CycloneDX SBOM of each with all that it needs, and SHA256SUMS. Two builds of one commit are the same
# byte for byte, whoever makes them and where, with the same version of hatchling.
#
# usage: build-release.sh PYTHON FOLDER   (PYTHON: an interpreter with the dependency group `release`)
#
# The browser client must have been built (`make clients`).
set -euo pipefail
python=$(realpath --no-symlinks "$1")
mkdir -p "$2"
folder=$(realpath "$2")
cd "$(dirname "$0")/.."

test -f messagebusd/browser/client.js || { echo "make clients first" >&2; exit 1; }
# All times in the archives are the commit's.
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
export SOURCE_DATE_EPOCH
umask 022

# First the sdist, then the wheel from it: so what others build from it is what is released.
for project in . clients/python; do
    "$python" -m build --no-isolation --outdir "$folder" "$project"
done

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
for wheel in "$folder"/*.whl; do
    name=$(basename "$wheel" -py3-none-any.whl)
    rm -rf "$environment"
    "$python" -m venv --without-pip "$environment"
    "$python" -m pip --quiet --python "$environment/bin/python" install "$wheel"
    # Where the wheel lay on this machine is nobody's business.
    rm "$environment"/lib/python*/site-packages/"${name%-*}"-*.dist-info/direct_url.json
    "$environment/bin/python" -I -W error -c "import ${name%-*}"
    "$python" -m cyclonedx_py environment --output-reproducible --spec-version 1.6 \
        --output-file "$folder/$name.cdx.json" "$environment/bin/python"
done

cd "$folder"
rm -f SHA256SUMS
sha256sum -- * > SHA256SUMS
