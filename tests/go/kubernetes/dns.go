package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	v1 "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// How long an answer is believed. It is short, as CoreDNS's is: services of the tests come and go.
const timeToLive = 5

// A cluster's DNS: it knows the services that have an address, by SERVICE.NAMESPACE.svc.cluster.local, over UDP, and says
// of all other names that they do not exist. CoreDNS would be as many lines of configuration and 60 MB more to link.
func clusterDNS(arguments []string) error {
	flags := flag.NewFlagSet("cluster-dns", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "how to reach the API server")
	listen := flags.String("listen", "", "address and port")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	configuration, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(configuration)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, time.Hour)
	services := factory.Core().V1().Services().Lister()
	factory.Start(context.Background().Done())
	factory.WaitForCacheSync(context.Background().Done())
	socket, err := net.ListenPacket("udp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "cluster-dns: serves on %s\n", *listen)
	question := make([]byte, 1500)
	for {
		size, peer, err := socket.ReadFrom(question)
		if err != nil {
			return err
		}
		if answer, err := answerTo(question[:size], services); err != nil {
			fmt.Fprintf(os.Stderr, "cluster-dns: from %s: %s\n", peer, err)
		} else if _, err := socket.WriteTo(answer, peer); err != nil {
			fmt.Fprintf(os.Stderr, "cluster-dns: to %s: %s\n", peer, err)
		}
	}
}

func answerTo(packed []byte, services v1.ServiceLister) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(packed)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	answer := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: header.ID, Response: true, Authoritative: true,
			RecursionDesired: header.RecursionDesired, RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{question},
	}
	address := addressOf(strings.ToLower(question.Name.String()), services)
	if address == nil {
		answer.RCode = dnsmessage.RCodeNameError
	} else if question.Type == dnsmessage.TypeA {
		resource := dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: question.Class, TTL: timeToLive},
			Body:   &dnsmessage.AResource{A: [4]byte(address)},
		}
		answer.Answers = []dnsmessage.Resource{resource}
	}
	return answer.Pack()
}

func addressOf(name string, services v1.ServiceLister) net.IP {
	name, known := strings.CutSuffix(name, ".svc.cluster.local.")
	service, namespace, split := strings.Cut(name, ".")
	if !known || !split {
		return nil
	}
	if found, err := services.Services(namespace).Get(service); err == nil {
		return net.ParseIP(found.Spec.ClusterIP).To4()
	}
	return nil
}
