{{- /* Writes a value as a CEL expression: (dict "value" value "type" type), where type names what stands there in an
object of Kubernetes, such as Object.spec.volumes. CEL there has objects of named types, whose misspelt fields the API
server refuses, and maps from text to text: those that volumes and containers have, and whatever has a key that is no name
of a field. */}}
{{- define "sds-shim.cel.maps" -}}
annotations labels limits matchLabels nodeSelector options requests userAnnotations volumeAttributes
{{- end }}
{{- /* Names of fields that are words of CEL; Kubernetes writes them so: __namespace__. */}}
{{- define "sds-shim.cel.words" -}}
as break const continue else false for function if import in let loop namespace null package return true var void while
{{- end }}

{{- define "sds-shim.cel" -}}
{{- $type := .type }}
{{- if kindIs "map" .value }}
{{- $parts := list }}
{{- $isMap := has (splitList "." $type | last) (include "sds-shim.cel.maps" . | splitList " ") }}
{{- range $key, $_ := .value }}{{ if not (regexMatch "^[A-Za-z_][A-Za-z0-9_]*$" $key) }}{{ $isMap = true }}{{ end }}{{ end }}
{{- if $isMap }}
{{- range $key, $value := .value }}{{ $parts = append $parts (printf "%s: %s" ($key | toJson) ($value | toString | toJson)) }}{{ end }}
{{- $type = "" }}
{{- else }}
{{- range $key, $value := .value }}
{{- $field := ternary (printf "__%s__" $key) $key (has $key (include "sds-shim.cel.words" $ | splitList " ")) }}
{{- $parts = append $parts (printf "%s: %s" $field (include "sds-shim.cel" (dict "value" $value "type" (printf "%s.%s" $type $key)))) }}
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
