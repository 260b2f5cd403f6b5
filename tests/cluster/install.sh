#!/usr/bin/env bash
# Installs what tests/cluster needs: Slurm's daemons from Debian's packages, if root may install them, and SkyPilot in an
# environment of its own. Prints what cannot be installed; its tests are then skipped with the reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf 'cluster tests: %s\n' "$*" >&2; }
have() { command -v "$@" >/dev/null; }

install_slurm() {
  have slurmctld && have slurmd && have sbatch && have munged && return
  if ! have apt-get || [[ $(id -u) != 0 ]]; then
    say "no Slurm: installing slurmctld, slurmd, slurm-client and munge takes apt-get and root"
    return
  fi
  # Keep packages from starting their daemons, which these tests do not use.
  local policy=/usr/sbin/policy-rc.d forbidden=
  if [[ ! -e $policy ]]; then
    forbidden=1
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; } \
    >/dev/null || say "no Slurm: apt-get cannot install it"
  [[ -z $forbidden ]] || rm -f $policy
}

install_skypilot() {
  local version
  version=$(grep '^skypilot==' constraints.txt)
  .venv-skypilot/bin/python -c "import sky; assert 'skypilot==' + sky.__version__ == '$version'" 2>/dev/null && return
  .venv/bin/python -m venv --clear .venv-skypilot
  PIP_CONSTRAINT='' .venv-skypilot/bin/python -m pip --disable-pip-version-check install --quiet "$version" || {
    rm -rf .venv-skypilot
    say "no SkyPilot: pip cannot install $version"
  }
}

install_slurm
install_skypilot
