{{- /* Writes a value as a CEL expression: (dict "value" value "type" type), where type names what stands there in an
object of Kubernetes, such as Object.spec.volumes. CEL there has objects of named types, and no maps of mixed values. */}}
{{- define "sds-shim.cel" -}}
{{- $type := .type }}
{{- if kindIs "map" .value }}
{{- $parts := list }}
{{- if has (splitList "." $type | last) (list "limits" "requests" "matchLabels" "volumeAttributes") }}
{{- range $key, $value := .value }}{{ $parts = append $parts (printf "%s: %s" ($key | toJson) ($value | toString | toJson)) }}{{ end }}
{{- $type = "" }}
{{- else }}
{{- range $key, $value := .value }}
{{- $parts = append $parts (printf "%s: %s" $key (include "sds-shim.cel" (dict "value" $value "type" (printf "%s.%s" $type $key)))) }}
{{- end }}
{{- end }}
{{- printf "%s{%s}" $type (join ", " $parts) }}
{{- else if kindIs "slice" .value }}
{{- $parts := list }}
{{- range .value }}{{ $parts = append $parts (include "sds-shim.cel" (dict "value" . "type" $type)) }}{{ end }}
{{- printf "[%s]" (join ", " $parts) }}
{{- else if kindIs "string" .value }}
{{- .value | toJson | replace "@APP_PORT@" "\" + variables.port + \"" }}
{{- else if kindIs "bool" .value }}
{{- .value }}
{{- else }}
{{- .value | int64 }}
{{- end }}
{{- end }}
