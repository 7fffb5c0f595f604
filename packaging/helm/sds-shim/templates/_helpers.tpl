{{- /* Labels of everything in the release. */}}
{{- define "sds-shim.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "sds-shim.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* Name of what the chart makes for a whole cluster, and in the namespaces of the mesh. */}}
{{- define "sds-shim.name" -}}
{{- if eq .Release.Name .Chart.Name }}{{ .Chart.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- /* The port that Prometheus scrapes: over mutual TLS, or in clear. */}}
{{- define "sds-shim.metrics.port" -}}
{{ ternary "15023" "15022" (not (empty .Values.metrics.tlsClients)) }}
{{- end }}

{{- define "sds-shim.developmentCA" -}}
{{ include "sds-shim.name" . }}-development-ca
{{- end }}

{{- /* Refuses what the cluster has not: (context, "group/version/Kind", the value that asks for it, what to do). */}}
{{- define "sds-shim.needs" -}}
{{- $context := index . 0 }}
{{- if not ($context.Capabilities.APIVersions.Has (index . 1)) }}
{{- fail (printf "%s needs %s, which this cluster does not have: %s (`helm template` does not see the cluster: add --api-versions %s)" (index . 2) (index . 1) (index . 3) (index . 1)) }}
{{- end }}
{{- end }}

{{- /* Helm does not know each kind of Kubernetes' own when it has no cluster. */}}
{{- define "sds-shim.needsPolicies" -}}
{{- if semverCompare "<1.36.0-0" .context.Capabilities.KubeVersion.Version }}
{{- include "sds-shim.needs" (list .context "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" .value (printf "take Kubernetes 1.36 or newer, or %s" .instead)) }}
{{- end }}
{{- end }}

{{- /* What is wrong with the values beyond what the schema can say. */}}
{{- define "sds-shim.validate" -}}
{{- with .Values }}
{{- if and (not .developmentCA.enabled) (eq .ca.root.source "pem") (not (contains "BEGIN CERTIFICATE" .ca.root.pem)) }}
{{- fail "ca.root.pem must hold certificates in PEM, because ca.root.source is pem" }}
{{- end }}
{{- with .ca.root.clusterTrustBundle }}
{{- if and (eq $.Values.ca.root.source "clusterTrustBundle") (eq (empty .name) (empty .signerName)) }}
{{- fail "ca.root.clusterTrustBundle must have either name or signerName, because ca.root.source is clusterTrustBundle" }}
{{- end }}
{{- end }}
{{- if and .metrics.tlsClients (not .metrics.enabled) }}
{{- fail "metrics.tlsClients needs metrics.enabled, and then replaces the port without TLS" }}
{{- end }}
{{- if and .workloadAPI.uids (not .workloadAPI.enabled) }}
{{- fail "workloadAPI.uids needs workloadAPI.enabled" }}
{{- end }}
{{- if and .podMonitor.enabled (not .metrics.enabled) }}
{{- fail "podMonitor.enabled needs metrics.enabled: Prometheus does not reach the shims' loopback address" }}
{{- end }}
{{- if and .podMonitor.enabled (eq .mode "istio") (not .istio.policy) }}
{{- fail "podMonitor.enabled needs istio.policy in mode istio: an Istio injection template cannot exclude the metrics port from redirection to Envoy. Give the pods the annotation traffic.sidecar.istio.io/excludeInboundPorts: \"15022\" (15023 with metrics.tlsClients), and monitor those with the label sds-shim.dev/injected=true by a PodMonitor of yours" }}
{{- end }}
{{- if eq .mode "istio" }}{{ include "sds-shim.validate.istio" . }}{{ end }}
{{- end }}
{{- end }}

{{- /* What Istio's sidecar would not heed: (the values). */}}
{{- define "sds-shim.validate.istio" -}}
{{- range list
  (list .developmentCA.enabled "developmentCA.enabled" "with mode istio the CA is istiod, or the one that ca.address names")
  (list (ne .ca.root.source "configMap") "ca.root.source" "Istio's sidecar has the root that istiod gives it, or that env.CA_ROOT_CA names")
  (list (ne .ca.audience "istio-ca") "ca.audience" "Istio's sidecar asks for the audience global.sds.token.aud of istiod's chart, and the shim follows")
  (list .workloadAPI.enabled "workloadAPI.enabled" "for Istio's sidecar set env.SDS_SHIM_WORKLOAD_API, and mount a volume there")
  (list .mutualTLS.networkPolicy "mutualTLS.networkPolicy" "Istio's sidecar accepts traffic on any port")
  (list .trustDomainAliases "trustDomainAliases" "Istio has meshConfig.trustDomainAliases")
  (list (or .proxy.outbound .proxy.allowedClients .proxy.probePaths) "proxy" "Istio's sidecar is configured by istiod")
  (list (eq .injection "patch") "injection=patch" "with mode istio it is istio.policy=false, and an annotation of the pods")
}}
{{- if index . 0 }}{{ fail (printf "%s is for mode standalone: %s" (index . 1) (index . 2)) }}{{ end }}
{{- end }}
{{- end }}
