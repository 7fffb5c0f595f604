{{- /* A template of Istio's injector, which merges it with its own. The image is named here and not by the annotation
sidecar.istio.io/proxyImage, because Istio starts istio-init from the image of that annotation as well. */}}
{{- define "sds-shim.istio.template" -}}
{{ `{{- $native := ne (index .ObjectMeta.Annotations "sidecar.istio.io/nativeSidecar" | default (printf "%t" .NativeSidecars)) "false" }}` }}
{{ `{{- $named := isset .ObjectMeta.Annotations "sidecar.istio.io/proxyImage" }}` }}
{{ `{{- $redirects := ne (annotation .ObjectMeta "sidecar.istio.io/interceptionMode" .ProxyConfig.InterceptionMode) "NONE" }}` }}
metadata:
  labels:
    # For Prometheus: only here is it certain that the pod is injected.
    sds-shim.dev/injected: "true"
spec:
{{ `{{- if or $native (and $named $redirects) }}` }}
  initContainers:
{{ `{{- end }}` }}
{{ `{{- if and $named $redirects }}` }}
  # It has our entrypoint, too, and needs no certificate.
  - name: {{ "{{ if .Values.pilot.cni.enabled }}istio-validation{{ else }}istio-init{{ end }}" }}
    command: [/usr/local/bin/pilot-agent]
{{ `{{- end }}` }}
{{ `{{- if not $native }}` }}
  containers:
{{ `{{- end }}` }}
  - name: istio-proxy
{{ `{{- if not $named }}` }}
    image: {{ .Values.istio.image | quote }}
{{ `{{- end }}` }}
{{ `{{- $port := annotation .ObjectMeta "status.sidecar.istio.io/port" .Values.global.proxy.statusPort }}` }}
{{ `{{- if and .Values.global.proxy.startupProbe.enabled (ne $port "0") }}` }}
    startupProbe:
      # A day: Istio's ten minutes are less than an outage of the CA, and its end would end the shim's waiting, too.
      failureThreshold: 86400
{{ `{{- end }}` }}
    {{- $set := include "sds-shim.variables" . | fromYaml }}
{{ printf `{{- if or %t (ne .Values.global.sds.token.aud "istio-ca") }}` (not (empty $set)) }}
    env:
    {{- range $name, $value := $set }}
    - name: {{ $name }}
      value: {{ $value | quote }}
    {{- end }}
{{ `{{- end }}` }}
    {{- if not (hasKey $set "SDS_SHIM_TOKEN_AUDIENCE") }}
{{ `{{- if ne .Values.global.sds.token.aud "istio-ca" }}` }}
    # What Istio's own volume asks for.
    - name: SDS_SHIM_TOKEN_AUDIENCE
      value: {{ `{{ .Values.global.sds.token.aud | quote }}` }}
{{ `{{- end }}` }}
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    volumeMounts:
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
  - name: workload-socket
    emptyDir:
      medium: Memory
      sizeLimit: {{ .Values.socket.sizeLimit }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
