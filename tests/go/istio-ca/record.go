package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	pb "istio.io/api/security/v1alpha1"
)

// call is what a test can see of one CreateCertificate; serial numbers are in hexadecimal, "" is none.
type call struct {
	CSR      string            `json:"csr"`
	Validity int64             `json:"validity"`
	Metadata map[string]string `json:"metadata"`
	Token    bool              `json:"token"`
	Peer     string            `json:"peer"`
	Code     uint32            `json:"code"`
	Message  string            `json:"message"`
	Issued   string            `json:"issued"`
}

// recorder writes calls once they are answered.
type recorder struct {
	mutex sync.Mutex
	out   *json.Encoder
}

func (r *recorder) record(
	ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	answer, err := handler(ctx, request)
	seen := call{Token: hasToken(ctx), Peer: peerSerial(ctx), Metadata: map[string]string{}}
	if request, ok := request.(*pb.IstioCertificateRequest); ok {
		seen.CSR, seen.Validity = request.Csr, request.ValidityDuration
		for name, value := range request.Metadata.GetFields() {
			seen.Metadata[name] = value.GetStringValue()
		}
	}
	if answer, ok := answer.(*pb.IstioCertificateResponse); ok && err == nil {
		seen.Issued = leafSerial(answer.CertChain)
	}
	seen.Code, seen.Message = uint32(status.Code(err)), status.Convert(err).Message()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	// A reader that is gone closes standard input as well, which ends the process.
	_ = r.out.Encode(seen)
	return answer, err
}

func hasToken(ctx context.Context) bool {
	headers, _ := metadata.FromIncomingContext(ctx)
	return len(headers["authorization"]) > 0
}

func peerSerial(ctx context.Context) string {
	client, _ := peer.FromContext(ctx)
	if client == nil {
		return ""
	}
	info, _ := client.AuthInfo.(credentials.TLSInfo)
	if len(info.State.PeerCertificates) == 0 {
		return ""
	}
	return info.State.PeerCertificates[0].SerialNumber.Text(16)
}

func leafSerial(chain []string) string {
	if len(chain) == 0 {
		return ""
	}
	block, _ := pem.Decode([]byte(chain[0]))
	if block == nil {
		return ""
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return ""
	}
	return leaf.SerialNumber.Text(16)
}
