# shellcheck shell=bash
# Written by `make manual` from `sds-shim help`.
_sds_shim() {
    local current=${COMP_WORDS[COMP_CWORD]} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words='serve exec status health wait renew get check env version help'
    else
        case ${COMP_WORDS[1]} in
            status) words='--json --table --row' ;;
            wait) words='--timeout' ;;
            get) words='default ROOTCA' ;;
            exec)
                local at=2
                [ "${COMP_WORDS[2]}" != -- ] || at=3
                if declare -F _command_offset >/dev/null; then
                    _command_offset "$at"
                else
                    mapfile -t COMPREPLY < <(compgen -c -- "$current")
                fi
                return
                ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -F _sds_shim sds-shim
