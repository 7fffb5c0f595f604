#compdef sds-shim
# Written by `make manual` from `sds-shim help`.
local -a commands
commands=(
    'serve:obtain a certificate'
    'exec:serve while running the program'
    'status:show the running shim'\''s identity'
    'health:exit with 0 if it is ready'
    'wait:wait until it is ready'
    'renew:renew the certificate now'
    'get:print the public part of a secret'
    'check:validate the environment and the files it names'
    'env:list the environment variables'
    'version:print the version'
    'help:print this text'
)
if (( CURRENT == 2 )); then
    _describe command commands
    return
fi
case $words[2] in
    status) compadd -- --json --table --row ;;
    wait) compadd -- --timeout ;;
    get) compadd -- default ROOTCA ;;
    exec)
        shift words
        (( CURRENT-- ))
        if [[ $words[2] == -- ]] && (( CURRENT > 2 )); then
            shift words
            (( CURRENT-- ))
        fi
        shift words
        (( CURRENT-- ))
        _normal
        ;;
esac
