{{- /* The files of the development CA's Secret, as YAML: those of the release, else new ones. They are made once in a
rendering, because several templates need them. A certificate of the root stands in for the intermediate's. */}}
{{- define "sds-shim.developmentCA.authority" -}}
{{- if not (hasKey .Values.developmentCA "files") }}
{{- $secret := lookup "v1" "Secret" .Release.Namespace (include "sds-shim.developmentCA" .) | default dict }}
{{- $files := dict }}
{{- range $name, $content := $secret.data }}{{ $_ := set $files $name ($content | b64dec) }}{{ end }}
{{- if not $files }}
{{- $root := genCAWithKey "sds-shim development CA" 3650 (genPrivateKey "ecdsa") }}
{{- range list "root" "intermediate" }}
{{- $_ := set $files (printf "%s-cert.pem" .) $root.Cert }}
{{- $_ := set $files (printf "%s-key.pem" .) $root.Key }}
{{- end }}
{{- $_ := set $files "token-rsa-key.pem" (genPrivateKey "rsa") }}
{{- $_ := set $files "token-ec-key.pem" (genPrivateKey "ecdsa") }}
{{- end }}
{{- $_ := set .Values.developmentCA "files" $files }}
{{- end }}
{{- dict "certificate" (get .Values.developmentCA.files "root-cert.pem") "files" .Values.developmentCA.files | toYaml }}
{{- end }}
