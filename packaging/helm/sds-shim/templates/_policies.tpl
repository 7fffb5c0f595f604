{{- /* What the policies have in common. Pods that are made, but for those that do not want it. */}}
{{- define "sds-shim.pods" -}}
# No pod starts without its sidecar.
failurePolicy: Fail
matchConstraints:
  resourceRules:
  - apiGroups: [""]
    apiVersions: [v1]
    resources: [pods]
    operations: [CREATE]
  objectSelector:
    matchExpressions:
    - { key: sds-shim.dev/inject, operator: NotIn, values: ["false"] }
{{- end }}

{{- define "sds-shim.wanted" -}}
matchConditions:
# The ports of an Envoy in the node's network would be those of the node.
- name: has-a-network-of-its-own
  expression: >-
    !has(object.spec.hostNetwork) || !object.spec.hostNetwork
{{- end }}

{{- define "sds-shim.inNamespaces" -}}
matchResources:
  namespaceSelector:
    matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: In
      values:
        {{- toYaml .Values.namespaces | nindent 8 }}
{{- end }}

{{- define "sds-shim.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata:
  name: {{ include "sds-shim.name" . }}
  labels:
    {{- include "sds-shim.labels" . | nindent 4 }}
spec:
  policyName: {{ include "sds-shim.name" . }}
  {{- include "sds-shim.inNamespaces" . | nindent 2 }}
{{- end }}
