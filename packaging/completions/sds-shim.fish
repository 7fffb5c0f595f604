# Written by `make manual` from `sds-shim help`.
complete -c sds-shim -f
complete -c sds-shim -n __fish_use_subcommand -a serve -d 'obtain a certificate'
complete -c sds-shim -n __fish_use_subcommand -a exec -d 'serve while running the program'
complete -c sds-shim -n __fish_use_subcommand -a status -d 'show the running shim\'s identity'
complete -c sds-shim -n __fish_use_subcommand -a health -d 'exit with 0 if it is ready'
complete -c sds-shim -n __fish_use_subcommand -a wait -d 'wait until it is ready'
complete -c sds-shim -n __fish_use_subcommand -a renew -d 'renew the certificate now'
complete -c sds-shim -n __fish_use_subcommand -a get -d 'print the public part of a secret'
complete -c sds-shim -n __fish_use_subcommand -a check -d 'validate the environment and the files it names'
complete -c sds-shim -n __fish_use_subcommand -a env -d 'list the environment variables'
complete -c sds-shim -n __fish_use_subcommand -a version -d 'print the version'
complete -c sds-shim -n __fish_use_subcommand -a help -d 'print this text'
complete -c sds-shim -n '__fish_seen_subcommand_from status' -l json
complete -c sds-shim -n '__fish_seen_subcommand_from status' -l table
complete -c sds-shim -n '__fish_seen_subcommand_from status' -l row
complete -c sds-shim -n '__fish_seen_subcommand_from wait' -l timeout
complete -c sds-shim -n '__fish_seen_subcommand_from get' -a 'default ROOTCA'
complete -c sds-shim -n '__fish_seen_subcommand_from exec' -a '(__fish_complete_subcommand --fcs-skip=2)'
